// Without CUDA no tensor is on a GPU, so nothing here is ever reached.
#include "core/check.h"
#include "ops/quantized_cuda.h"

namespace lora::ops::cuda {

void dequantize(const io::QuantizedParts&, const at::Tensor&) {
  fail<ConfigError>("[ops.quantized] a GPU's kernels need a build with LORA_CUDA=ON; this one has it off");
}

}  // namespace lora::ops::cuda
