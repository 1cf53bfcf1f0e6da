#include "lora/train/speed_of_light.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>

#include "lora/core/stopwatch.h"
#include "lora/nn/linear.h"
#include "lora/ops/frozen_linear.h"

// Legend: s tokens of a row, h width of all heads.
namespace lora::train {
namespace {

/// Seconds of one product of size x size x size: the best of a few, after one for warming up. Taking one element of
/// each result waits for a GPU.
template <class Product>
double best_seconds(Product product) {
  constexpr int kRounds = 4;
  double best = std::numeric_limits<double>::infinity();
  product();
  for (int i = 0; i < kRounds; ++i) {
    const Stopwatch watch;
    product().flatten()[0].item();
    best = std::min(best, watch.seconds());
  }
  return best;
}

struct LinearCounts {
  double frozen = 0, trained = 0;  ///< elements of weights that every token meets
  double head_frozen = 0, head_trained = 0;
};

LinearCounts count_linear_weights(nn::CausalLMImpl& model) {
  LinearCounts counts;
  const auto head = model.head();
  for (const auto& module : model.modules(/*include_self=*/false)) {
    const auto* linear = module->as<nn::LinearImpl>();
    if (linear == nullptr) continue;
    const bool trained = linear->weight.requires_grad(), is_head = linear == head.get();
    double& count = is_head ? (trained ? counts.head_trained : counts.head_frozen) : (trained ? counts.trained : counts.frozen);
    count += static_cast<double>(linear->weight.numel());
  }
  return counts;
}

double squares_of_lengths(const Batch& batch) {
  double sum = 0;
  for (const int64_t length : batch.segment_lengths) sum += static_cast<double>(length) * static_cast<double>(length);
  if (!batch.segment_lengths.empty()) return sum;
  const auto rows = static_cast<double>(batch.input_ids_BS.size(0)), tokens = static_cast<double>(batch.num_tokens);
  return tokens * tokens / rows;
}

}  // namespace

double matmul_flops_per_second(const at::Device& device, at::ScalarType dtype) {
  const at::NoGradGuard no_grad;
  const int64_t size = device.is_cuda() ? 8192 : 1024;
  const auto options = at::TensorOptions().device(device).dtype(dtype);
  // A GPU that multiplies ones needs less power, and is faster, than with any real numbers.
  const auto numbers = [&] { return device.is_cuda() ? at::randn({size, size}, options) : at::ones({size, size}, options); };
  const at::Tensor a = numbers(), b = numbers();
  const double operations = 2.0 * static_cast<double>(size) * static_cast<double>(size) * static_cast<double>(size);
  if (device.is_cpu() && ops::PackedWeight::pays(dtype)) {
    const ops::PackedWeight packed({b}, dtype);
    return operations / best_seconds([&] { return packed.times(a); });
  }
  return operations / best_seconds([&] { return a.mm(b); });
}

double step_flops(nn::CausalLMImpl& model, std::span<const Batch> micro_batches) {
  const LinearCounts counts = count_linear_weights(model);
  const auto layers = static_cast<double>(model.num_layers()), width = static_cast<double>(model.attention_width());
  double flops = 0;
  for (const Batch& batch : micro_batches) {
    flops += static_cast<double>(batch.num_tokens) * (4 * counts.frozen + 6 * counts.trained);
    flops += static_cast<double>(model.num_targets(batch)) * (4 * counts.head_frozen + 6 * counts.head_trained);
    flops += 6 * squares_of_lengths(batch) * layers * width;
  }
  return flops;
}

}  // namespace lora::train
