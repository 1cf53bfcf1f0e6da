#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <utility>
#include <vector>

namespace lora::nn {

/// What a model has to know of the sequences in a cache beside their keys and values; each model derives its own.
struct CacheNotes {
  virtual ~CacheNotes() = default;
  /// The notes of a cache after KvCache::select_rows, and after drop_first.
  virtual std::shared_ptr<const CacheNotes> with_rows(const std::vector<int64_t>& rows) const = 0;
  virtual std::shared_ptr<const CacheNotes> without_first(int64_t count) const = 0;
};

/// Keys and values of the tokens seen so far, per layer, for generation; virtual tokens (nn/prompt.h) stand before them.
/// B batch, G key/value heads, S positions, K head size.
class KvCache {
 public:
  explicit KvCache(int64_t num_layers) : layers_(static_cast<size_t>(num_layers)) {}

  /// Appends (B, G, S, K) keys and values of one layer and returns all of them so far.
  std::pair<at::Tensor, at::Tensor> append(int64_t layer, const at::Tensor& key_BGSK, const at::Tensor& value_BGSK);
  /// Tokens held by every layer, virtual ones not counted.
  int64_t length() const { return length_; }
  int64_t virtual_tokens() const { return virtual_tokens_; }
  /// Counts the tokens of one forward pass once all layers have appended.
  void advance(int64_t tokens) { length_ += tokens; }
  /// The same for virtual tokens, which come first.
  void advance_virtual(int64_t tokens) { virtual_tokens_ += tokens; }
  /// Forgets all tokens from `length` on, never virtual ones. Throws ShapeError unless length is at least 0 and at most what is
  /// held.
  void cut_back(int64_t length);
  /// Row i becomes what row rows[i] was: rows leave, change places or multiply.
  void select_rows(const std::vector<int64_t>& rows);
  /// Forgets the first `count` tokens, never virtual ones: padding that no row has any more. Throws ShapeError as cut_back.
  void drop_first(int64_t count);

  /// The model's own; null: none.
  std::shared_ptr<const CacheNotes> notes;

 private:
  struct Layer {
    at::Tensor key_BGSK, value_BGSK;  // with room for more positions than are used
  };
  std::vector<Layer> layers_;
  int64_t length_ = 0, virtual_tokens_ = 0;
};

}  // namespace lora::nn
