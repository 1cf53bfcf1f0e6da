// Kernels over the rows of contiguous tensors: on the CPU for bf16, fp32 and double, on a GPU (in a build with CUDA) for
// fp16 besides. Each is one pass over memory where the plain operations need several. CPU kernels are threaded over rows,
// and the compiler makes one version per instruction set; a GPU has one block of threads per row.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

// Legend: N rows, D width of a row, F feed-forward width, V vocabulary.
namespace lora::ops::rows {

using at::Tensor;

/// Whether the kernels exist for this type and device.
bool supports(const at::Device& device, at::ScalarType type);
bool supports(const Tensor& tensor);
/// The same for a residual x and what is added to it (undefined: nothing): of one type, or narrower than an fp32 residual.
bool supports(const Tensor& x, const Tensor& added);
/// Whether a fast path of this name runs for `x`: when it is asked for and has kernels. When it has none that is said once.
bool applies(bool asked_for, const Tensor& x, const char* name);
/// The type in which they compute: fp32, or double for double.
at::ScalarType wide_type(at::ScalarType type);
/// x in the wide type of its own.
Tensor widened(const Tensor& x);

/// A product of so few rows costs what reading the weight costs.
constexpr int64_t kFewRows = 4;
/// Whether few_rows_product applies: to x (M, I) of so few rows, on the CPU.
bool are_few_rows(const Tensor& x);
/// x (M, I) W^T into the columns of y (M, O) from `first` on; `added` (M, O) in the wide type or undefined is added before
/// rounding. All contiguous. A row's result is the same, bit for bit, whatever rows stand beside it.
void few_rows_product(const Tensor& x, const Tensor& weight, Tensor& y, int64_t first, const Tensor& added = {});

/// Attention of the last S of T positions: q (B, H, S, K), k and v (B, G, T, K), whose heads may stand further apart than
/// T K (a cache with room), out (B, S, H, K). Query i sees the first T - S + 1 + i keys. Scores are scaled and kept in the
/// wide type. A query's result is the same, bit for bit, whatever queries stand beside it.
void attend_to_cache(const Tensor& q, const Tensor& k, const Tensor& v, double scale, Tensor& out);

/// sum = x + delta (rounded to x's type; without delta sum must be x itself), y = sum / rms(sum) * weight in y's type.
/// x, sum (N, D); delta, y (N, D) of one type; weight (D) and inverse_rms (N) in the wide type.
void add_rms_norm(const Tensor& x, const Tensor& delta, const Tensor& weight, double eps, Tensor& sum, Tensor& y,
                  Tensor& inverse_rms);
/// Gradient of add_rms_norm to sum, with `dsum` (undefined: none) from the residual path added.
void rms_norm_backward(const Tensor& dy, const Tensor& dsum, const Tensor& sum, const Tensor& weight, const Tensor& inverse_rms,
                       Tensor& dx);

/// Gradient (D) of add_rms_norm to the weight, in the wide type.
void rms_norm_weight_gradient(const Tensor& dy, const Tensor& sum, const Tensor& inverse_rms, Tensor& dweight);

/// sum = x_scale * x + delta (rounded to x's type), y = (sum - mean) / deviation * weight + bias in y's type. Without delta
/// sum must be x itself and x_scale 1. Shapes as above; weight, bias (D), mean and inverse_deviation (N) in the wide type.
void add_layer_norm(const Tensor& x, const Tensor& delta, double x_scale, const Tensor& weight, const Tensor& bias, double eps,
                    Tensor& sum, Tensor& y, Tensor& mean, Tensor& inverse_deviation);
/// Gradient of add_layer_norm to sum, with `dsum` (undefined: none) from the residual path added.
void layer_norm_backward(const Tensor& dy, const Tensor& dsum, const Tensor& sum, const Tensor& weight, const Tensor& mean,
                         const Tensor& inverse_deviation, Tensor& dx);

/// y = x * Phi(x) by the tanh formula, x and y (N, F).
void gelu_tanh(const Tensor& x, Tensor& y);
void gelu_tanh_backward(const Tensor& dy, const Tensor& x, Tensor& dx);

/// h = silu(gate) * up of gate_up (N, 2F), the gate first; h (N, F).
void swiglu(const Tensor& gate_up, Tensor& h);
/// Gradient (N, 2F) from dh (N, F).
void swiglu_backward(const Tensor& dh, const Tensor& gate_up, Tensor& dgate_up);

/// Turns logits (N, V) into (softmax - one-hot) in place when `gradient` is set, and gives each row's
/// -log softmax[label] in losses (N), in the wide type. labels (N) int64; a row with a negative one counts for nothing:
/// loss and gradient 0. The caller makes sure that none is V or more; a GPU, which cannot be asked, gives NaN.
void cross_entropy(Tensor& logits, const Tensor& labels, bool gradient, Tensor& losses);

/// Heads apart and rotated: qkv (B * S, (H + 2G) K) to q (B, H, S, K), k and v (B, G, S, K), q and k rotated by the
/// tables cos, sin (B or 1, S, K/2) in the wide type.
void split_rotated(const Tensor& qkv, const Tensor& cos, const Tensor& sin, Tensor& q, Tensor& k, Tensor& v);
/// The way back for gradients: rotated by the opposite angles, side by side.
void join_rotated(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& cos, const Tensor& sin, Tensor& dqkv);

/// Sum of the squares of a contiguous bf16 tensor on the CPU: in fp32 within blocks of 4096 numbers, in double over them.
double sum_of_squares(const Tensor& x);

/// One AdamW update with the numbers of torch.optim.AdamW.
struct AdamWStep {
  double learning_rate, beta1, beta2, eps, weight_decay;
  double correction1 = 1, correction2 = 1;  ///< 1 - beta^steps, or 1 without bias correction
  double gradient_factor = 1;               ///< of joint_adamw: 1
};
/// Updates a bf16 parameter and its fp32 master from its bf16 gradient in one pass over memory. All contiguous, of one
/// size; the moments in fp32.
void adamw(const AdamWStep& step, const Tensor& gradient, Tensor& master, Tensor& exp_avg, Tensor& exp_avg_sq, Tensor& parameter);

/// What an update of one parameter reads and writes: all contiguous and of one size, master and moments in fp32, `steps`
/// (its updates, this one counted) an fp32 scalar on the same device.
struct AdamWTensors {
  Tensor gradient, master, exp_avg, exp_avg_sq, parameter, steps;
};
/// Whether joint_adamw takes such a parameter: on a GPU, in half precision, with a gradient of that type or fp32.
bool has_joint_adamw(const Tensor& parameter, const Tensor& gradient);
/// `adamw` of many parameters of one type in few launches, with nobody waiting for the GPU: the corrections are made there,
/// from `steps`; those in `step` are not read.
void joint_adamw(const AdamWStep& step, bool corrects_bias, const std::vector<AdamWTensors>& tensors);

}  // namespace lora::ops::rows
