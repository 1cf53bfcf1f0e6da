#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

// Legend: N rows (tokens) of all sequences, n sequences of one class, L their padded length, W width.
namespace lora::ops {

using at::Tensor;

/// How the tokens of a packed row are laid out for attention: sequences of similar length side by side, padded on the
/// right, so that plain causal attention over each class is attention within each sequence. Made once per batch.
struct Segments {
  struct Class {
    int64_t length = 0;  ///< L
    Tensor index_nL;     ///< (n * L): which token stands there; padding repeats some token, and nobody reads it
  };
  std::vector<Class> classes;
  Tensor place_N;  ///< where each token stands among all classes' places, one class after the other
  int64_t longest = 0;

  bool empty() const { return classes.empty(); }
};

/// Lengths are padded to powers of two or three quarters of one, multiples of 32, and classes of more than 8 sequences to
/// a multiple of 4 sequences: few distinct shapes.
Segments segments_of(const std::vector<int64_t>& lengths, const at::Device& device);

/// x (N, W) laid out: (sum of n L, W), classes one after the other; and the way back. Each is the other's backward, so
/// gradients at padding must be, and are, without effect.
Tensor laid_out(const Tensor& x_NW, const Segments& segments);
Tensor taken_back(const Tensor& y_PW, const Segments& segments);

}  // namespace lora::ops
