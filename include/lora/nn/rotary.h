#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>

namespace lora::nn {

/// Cosines and sines of rotary embedding for given positions, in fp32. Source: transformers LlamaRotaryEmbedding.
class RotaryTable {
 public:
  RotaryTable(int64_t head_dim, double theta) : head_dim_(head_dim), theta_(theta) {}
  int64_t head_dim() const { return head_dim_; }
  /// position_ids: (B or 1, S) int64; results: (B or 1, 1, S, head_dim / 2).
  std::pair<at::Tensor, at::Tensor> at(const at::Tensor& position_ids_BS) const;

 private:
  int64_t head_dim_;
  double theta_;
};

}  // namespace lora::nn
