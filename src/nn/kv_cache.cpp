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

}  // namespace

std::pair<at::Tensor, at::Tensor> KvCache::append(int64_t layer, const at::Tensor& key_BGSK,
                                                  const at::Tensor& value_BGSK) {
  auto& held = layers_.at(static_cast<size_t>(layer));
  const int64_t used = virtual_tokens_ + length_;
  return {extended(held.key_BGSK, used, key_BGSK), extended(held.value_BGSK, used, value_BGSK)};
}

void KvCache::cut_back(int64_t length) {
  require<ShapeError>(length >= 0 && length <= length_, "[nn.KvCache] a cache must be cut back to 0 to {} positions; found {}",
                      length_, length);
  length_ = length;
}

}  // namespace lora::nn
