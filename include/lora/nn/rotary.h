#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace lora::nn {

/// Cosines and sines of rotary embedding for given positions, in fp32. Source: transformers LlamaRotaryEmbedding.
class RotaryTable {
 public:
  /// `half_precision`: frequencies are rounded to fp16 first, as ChatGLM-6B was trained.
  RotaryTable(int64_t head_dim, double theta, bool half_precision = false);
  int64_t head_dim() const { return head_dim_; }
  /// position_ids: (B or 1, S) int64; results: (B or 1, 1, S, head_dim / 2). On the CPU the numbers of a few positions are
  /// the same, bit for bit, whatever positions stand beside them.
  std::pair<at::Tensor, at::Tensor> at(const at::Tensor& position_ids_BS) const;

 private:
  std::pair<at::Tensor, at::Tensor> of_few(const at::Tensor& position_ids_BS) const;

  int64_t head_dim_;
  double theta_;
  bool half_precision_;
  std::vector<float> inverse_frequencies_;
};

}  // namespace lora::nn
