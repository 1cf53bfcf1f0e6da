#include "lora/nn/kv_cache.h"

#include <ATen/ATen.h>

#include "core/check.h"

namespace lora::nn {
namespace {

/// Copies `added` behind the first `used` positions of `store`, which grows by doubling.
at::Tensor extended(at::Tensor& store, int64_t used, const at::Tensor& added) {
  const int64_t needed = used + added.size(2);
  if (!store.defined() || store.size(2) < needed) {
    auto shape = added.sizes().vec();
    shape[2] = std::max<int64_t>(2 * needed, 64);
    at::Tensor larger = at::empty(shape, added.options());
    if (used > 0) larger.narrow(2, 0, used).copy_(store.narrow(2, 0, used));
    store = larger;
  }
  store.narrow(2, used, added.size(2)).copy_(added);
  return store.narrow(2, 0, needed);
}

at::Tensor with_rows(const at::Tensor& store, int64_t used, const std::vector<int64_t>& rows) {
  const at::Tensor rows_N = at::tensor(rows, at::kLong).to(store.device());
  auto shape = store.sizes().vec();
  shape[0] = rows_N.size(0);
  at::Tensor chosen = at::empty(shape, store.options());
  at::Tensor filled = chosen.narrow(2, 0, used);
  at::index_select_out(filled, store.narrow(2, 0, used), 0, rows_N);
  return chosen;
}

/// Positions from `begin` to `end` taken out of the first `used`.
at::Tensor without(const at::Tensor& store, int64_t used, int64_t begin, int64_t end) {
  at::Tensor shorter = at::empty_like(store);
  shorter.narrow(2, 0, begin).copy_(store.narrow(2, 0, begin));
  shorter.narrow(2, begin, used - end).copy_(store.narrow(2, end, used - end));
  return shorter;
}

}  // namespace

std::pair<at::Tensor, at::Tensor> KvCache::append(int64_t layer, const at::Tensor& key_BGSK, const at::Tensor& value_BGSK) {
  auto& held = layers_.at(static_cast<size_t>(layer));
  const int64_t used = virtual_tokens_ + length_;
  return {extended(held.key_BGSK, used, key_BGSK), extended(held.value_BGSK, used, value_BGSK)};
}

void KvCache::cut_back(int64_t length) {
  require<ShapeError>(length >= 0 && length <= length_, "[nn.KvCache] a cache must be cut back to 0 to {} positions; found {}",
                      length_, length);
  length_ = length;
}

void KvCache::select_rows(const std::vector<int64_t>& rows) {
  const int64_t used = virtual_tokens_ + length_;
  for (Layer& held : layers_) {
    if (!held.key_BGSK.defined()) continue;
    held.key_BGSK = with_rows(held.key_BGSK, used, rows);
    held.value_BGSK = with_rows(held.value_BGSK, used, rows);
  }
  if (notes) notes = notes->with_rows(rows);
}

void KvCache::drop_first(int64_t count) {
  require<ShapeError>(count >= 0 && count <= length_, "[nn.KvCache] 0 to {} of the first positions can be dropped; found {}",
                      length_, count);
  const int64_t used = virtual_tokens_ + length_, begin = virtual_tokens_, end = virtual_tokens_ + count;
  for (Layer& held : layers_) {
    if (!held.key_BGSK.defined() || count == 0) continue;
    held.key_BGSK = without(held.key_BGSK, used, begin, end);
    held.value_BGSK = without(held.value_BGSK, used, begin, end);
  }
  length_ -= count;
  if (notes) notes = notes->without_first(count);
}

}  // namespace lora::nn
