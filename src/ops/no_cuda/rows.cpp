// Without CUDA no tensor is on a GPU, so nothing here is ever reached but `supports`.
#include "core/check.h"
#include "ops/rows_cuda.h"

namespace lora::ops::rows::cuda {
namespace {

[[noreturn]] void fail_without_cuda() {
  fail<ConfigError>("[ops.rows] a GPU's kernels need a build with LORA_CUDA=ON; this one has it off");
}

}  // namespace

bool supports(at::ScalarType) { return false; }

void add_rms_norm(const Tensor&, const Tensor&, const Tensor&, double, Tensor&, Tensor&, Tensor&) { fail_without_cuda(); }
void rms_norm_backward(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, Tensor&) {
  fail_without_cuda();
}
void add_layer_norm(const Tensor&, const Tensor&, double, const Tensor&, const Tensor&, double, Tensor&, Tensor&, Tensor&,
                    Tensor&) {
  fail_without_cuda();
}
void layer_norm_backward(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, Tensor&) {
  fail_without_cuda();
}
void gelu_tanh(const Tensor&, Tensor&) { fail_without_cuda(); }
void gelu_tanh_backward(const Tensor&, const Tensor&, Tensor&) { fail_without_cuda(); }
void swiglu(const Tensor&, Tensor&) { fail_without_cuda(); }
void swiglu_backward(const Tensor&, const Tensor&, Tensor&) { fail_without_cuda(); }
void cross_entropy(Tensor&, const Tensor&, bool, Tensor&) { fail_without_cuda(); }
void split_rotated(const Tensor&, const Tensor&, const Tensor&, Tensor&, Tensor&, Tensor&) { fail_without_cuda(); }
void join_rotated(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, Tensor&) { fail_without_cuda(); }
void joint_adamw(const AdamWStep&, bool, const std::vector<AdamWTensors>&) { fail_without_cuda(); }

}  // namespace lora::ops::rows::cuda
