#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

// Legend: N rows (tokens) of all sequences, P places of all classes, n sequences of one class, L their padded length, W width.
namespace lora::ops {

using at::Tensor;

/// How the tokens of a packed row are laid out for attention: sequences of similar length side by side, padded on the
/// right, so that plain causal attention over each class is attention within each sequence. Made once per batch.
struct Segments {
  struct Class {
    int64_t length = 0, count = 0;  ///< L, n
  };
  std::vector<int64_t> lengths;  ///< of the sequences in their order
  std::vector<Class> classes;
  Tensor index_P;  ///< which token stands at each place, one class after the other; padding repeats some token unread
  Tensor place_N;  ///< where each token stands among the places
  int64_t longest = 0;
  /// Instead of classes, for a GPU's attention (ops::attends_by_bounds): where sequences begin and the last one ends, int32,
  /// and each token's position in its own (1, N).
  Tensor bounds, position_1N;

  bool empty() const { return longest == 0; }
  bool by_class() const { return !classes.empty(); }
  bool by_bounds() const { return bounds.defined(); }
};

/// Lengths are padded to powers of two or three quarters of one, multiples of 32, and classes of more than 8 sequences to
/// a multiple of 4 sequences: few distinct shapes.
Segments segments_of(const std::vector<int64_t>& lengths, const at::Device& device);
/// The lengths alone, which is all that joined_attention asks for.
Segments lengths_of(const std::vector<int64_t>& lengths);
/// By bounds, without classes.
Segments bounds_of(const std::vector<int64_t>& lengths, const at::Device& device);

/// x (N, W) laid out: (sum of n L, W), classes one after the other; and the way back. Each is the other's backward, so
/// gradients at padding must be, and are, without effect.
Tensor laid_out(const Tensor& x_NW, const Segments& segments);
Tensor taken_back(const Tensor& y_PW, const Segments& segments);

}  // namespace lora::ops
