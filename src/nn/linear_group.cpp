#include "lora/nn/linear_group.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>
#include <typeinfo>

#include "core/check.h"
#include "core/once.h"
#include "lora/nn/probe.h"
#include "lora/ops/autocast.h"
#include "ops/few_rows_linear.h"
#include "ops/rows.h"

namespace lora::nn {
namespace {

bool is_plain(const LinearImpl& layer) { return typeid(layer) == typeid(LinearImpl); }

/// Without gradients nothing is trained.
bool is_frozen(const LinearImpl& layer) {
  if (!at::GradMode::is_enabled()) return true;
  return !layer.weight.requires_grad() && !(layer.bias.defined() && layer.bias.requires_grad());
}

/// Nobody but the layer itself holds the weight: its member and its entry among the parameters.
bool is_held_by_layer_alone(const Tensor& weight) {
  return weight.use_count() <= 2 && weight.storage().use_count() == 1;
}

bool are_few_rows(const Tensor& x) { return x.numel() > 0 && x.numel() <= ops::rows::kFewRows * x.size(-1); }

/// What the products need beside the weights themselves.
ops::FrozenWeights without_weights(const std::vector<Linear>& layers) {
  ops::FrozenWeights weights;
  const bool has_bias = std::any_of(layers.begin(), layers.end(), [](const Linear& layer) { return layer->bias.defined(); });
  for (const Linear& layer : layers) {
    weights.outputs.push_back(layer->options.out_features);
    if (!has_bias) continue;
    weights.biases.push_back(layer->bias.defined() ? layer->bias
                                                   : at::zeros({layer->options.out_features}, layer->weight.options()));
  }
  return weights;
}

/// The weights in few bits, where all of them are in few bits; else nothing.
std::vector<std::shared_ptr<const ops::QuantizedTensor>> all_bits(const std::vector<Linear>& layers) {
  std::vector<std::shared_ptr<const ops::QuantizedTensor>> bits;
  for (const Linear& layer : layers) {
    if (!layer->weight_is_quantized()) return {};
    bits.push_back(layer->quantized_weight());
  }
  return bits;
}

/// One weight for one product: those of all layers below each other.
Tensor made_whole(const std::vector<Linear>& layers, at::ScalarType dtype) {
  std::vector<int64_t> rows;
  for (const Linear& layer : layers) rows.push_back(layer->options.out_features);
  const Tensor whole = at::empty({std::accumulate(rows.begin(), rows.end(), int64_t{0}), layers.front()->options.in_features},
                                 layers.front()->weight.options().dtype(dtype));
  const auto parts = whole.split_with_sizes(rows);
  for (size_t i = 0; i < layers.size(); ++i) layers[i]->quantized_weight()->dequantize_into(parts[i]);
  return whole;
}

std::vector<Tensor> brought(const std::vector<Linear>& layers, at::ScalarType dtype) {
  const auto stored = layers.front()->passing_dtype(dtype);
  const bool one_type = std::all_of(layers.begin(), layers.end(), [&](const Linear& layer) { return layer->passing_dtype(dtype) == stored; });
  if (one_type && !all_bits(layers).empty()) return {made_whole(layers, stored)};
  std::vector<Tensor> weights;
  for (const Linear& layer : layers) weights.push_back(layer.ptr()->passing_weight(dtype));
  return weights;
}

}  // namespace

Tensor LinearGroup::forward(const Tensor& x, const FastPaths& fast) {
  if (probing() || !can_join(fast)) {
    if (fast.joined && !probing()) say_why_not_joined();
    return one_by_one(x);
  }
  require<ShapeError>(x.size(-1) == layers_.front()->options.in_features,
                      "[nn.Linear] the input's last size must be {}; found shape [{}]",
                      layers_.front()->options.in_features, fmt::join(x.sizes(), ", "));
  const auto dtype = compute_dtype(x.device().type(), x.scalar_type());
  const bool apart = are_few_rows(x) && x.scalar_type() == dtype && keeps_rows_apart(dtype, fast);
  const ops::FrozenWeights weights = is_brought() ? brought_weights(dtype, fast)
                                     : apart       ? plain_weights()
                                                   : held_weights(dtype, fast);

  std::vector<ops::LowRankUpdate> updates;
  std::vector<std::pair<size_t, std::shared_ptr<Adapter>>> others;
  for (size_t i = 0; i < layers_.size(); ++i) {
    for (const auto& adapter : layers_[i]->slot.contributing()) {
      if (const auto factors = adapter->low_rank()) {
        updates.push_back({factors->a_RI, factors->b_OR, factors->scale, i});
      } else {
        others.emplace_back(i, adapter);
      }
    }
  }
  if (apart) return ops::few_rows_linear(x, weights, updates, all_bits(layers_));
  const Tensor y = ops::frozen_linear(x, weights, updates);
  if (others.empty()) return y;
  say_once("fast path joined: an adapter with dropout, or of a method that is no low-rank update, is computed and added by itself");
  auto parts = y.split_with_sizes(weights.outputs, -1);
  for (const auto& [i, adapter] : others) parts[i] = parts[i] + adapter->delta(x).to(y.scalar_type());
  return at::cat(parts, -1);
}

bool LinearGroup::keeps_rows_apart(at::ScalarType dtype, const FastPaths& fast) const {
  if (at::GradMode::is_enabled() || probing() || !can_join(fast) || !reads_plain_weights(dtype, fast)) return false;
  return std::all_of(layers_.begin(), layers_.end(), [](const Linear& layer) {
    const auto& adapters = layer->slot.contributing();
    return std::all_of(adapters.begin(), adapters.end(), [](const auto& adapter) { return adapter->low_rank().has_value(); });
  });
}

/// Weights that a kernel for rows of `dtype` can read as they lie in memory, or as they are brought there. Held ones that are
/// packed can be while they are not given up, so it is the same with streamed ones.
bool LinearGroup::reads_plain_weights(at::ScalarType dtype, const FastPaths& fast) const {
  return std::all_of(layers_.begin(), layers_.end(), [&](const Linear& layer) {
    if (layer->weight.scalar_type() != dtype || !ops::rows::supports(layer->weight) || !layer->weight.is_cpu()) return false;
    if (layer->weight_is_quantized()) return true;
    if (layer->weight_is_streamed()) return !fast.release_plain || !packs_brought(dtype, fast);
    return !layer->weight_is_released() && layer->weight.is_contiguous();
  });
}

ops::FrozenWeights LinearGroup::plain_weights() const {
  ops::FrozenWeights weights = without_weights(layers_);
  for (const Linear& layer : layers_) weights.plain.push_back(layer->weight);
  return weights;
}

ops::FrozenWeights LinearGroup::held_weights(at::ScalarType dtype, const FastPaths& fast) {
  ops::FrozenWeights weights = without_weights(layers_);
  weights.packed = packed_for(dtype, fast);
  for (Linear& layer : layers_) {
    if (!weights.packed) layer->restore_weight();
    weights.plain.push_back(layer->weight);
  }
  return weights;
}

/// Packed and plain products differ in their last bits: streamed weights are packed where held ones would be. Quantised ones,
/// which give other numbers anyway, are not: it takes longer than it saves.
ops::FrozenWeights LinearGroup::brought_weights(at::ScalarType dtype, const FastPaths& fast) {
  ops::FrozenWeights weights = without_weights(layers_);
  weights.bring = [layers = layers_, dtype] { return brought(layers, dtype); };
  if (can_pack_now(dtype) && fast.packed_weights) packs_brought_ = dtype;
  weights.packs_brought = packs_brought(dtype, fast) && all_bits(layers_).empty();
  return weights;
}

bool LinearGroup::packs_brought(at::ScalarType dtype, const FastPaths& fast) const {
  return fast.packed_weights && packs_brought_ == dtype;
}

bool LinearGroup::is_brought() const {
  return std::any_of(layers_.begin(), layers_.end(), [](const Linear& layer) { return layer->weight_is_brought(); });
}

bool LinearGroup::can_pack_now(at::ScalarType dtype) const {
  return at::GradMode::is_enabled() && layers_.front()->weight.device().is_cpu() && ops::PackedWeight::pays(dtype);
}

std::shared_ptr<const ops::PackedWeight> LinearGroup::packed_for(at::ScalarType dtype, const FastPaths& fast) {
  if (!fast.packed_weights || !can_join(fast)) return nullptr;
  if (packed_ != nullptr && packed_->dtype() == dtype && packed_is_current()) return packed_;
  if (!can_pack_now(dtype)) {
    if (at::GradMode::is_enabled() && layers_.front()->weight.is_cpu()) {
      say_once(fmt::format("fast path packed_weights: products in {} gain nothing from it on this processor", c10::toString(dtype)));
    }
    return nullptr;
  }
  pack(dtype, fast.release_plain);
  return packed_;
}

bool LinearGroup::can_join(const FastPaths& fast) const {
  return fast.joined && std::all_of(layers_.begin(), layers_.end(), [](const Linear& layer) {
           return is_plain(*layer) && is_frozen(*layer);
         });
}

void LinearGroup::say_why_not_joined() const {
  const bool all_plain = std::all_of(layers_.begin(), layers_.end(), [](const Linear& layer) { return is_plain(*layer); });
  say_once(all_plain ? "fast path joined: layers whose weights train run one by one"
                     : "fast path joined: layers of a derived type run one by one");
}

bool LinearGroup::packed_is_current() const {
  for (size_t i = 0; i < layers_.size(); ++i) {
    const LinearImpl& layer = *layers_[i];
    if (!seen_[i]) {
      if (!layer.weight_is_released()) return false;
    } else if (layer.weight.const_data_ptr() != seen_[i]->data || layer.weight._version() != seen_[i]->version) {
      return false;
    }
  }
  return true;
}

void LinearGroup::pack(at::ScalarType dtype, bool release_plain) {
  std::vector<Tensor> plain;
  for (Linear& layer : layers_) {
    layer->restore_weight();
    plain.push_back(layer->weight.detach());
  }
  packed_ = std::make_shared<const ops::PackedWeight>(plain, dtype);
  plain.clear();
  seen_.assign(layers_.size(), std::nullopt);
  for (size_t i = 0; i < layers_.size(); ++i) {
    LinearImpl& layer = *layers_[i];
    if (release_plain && layer.weight.scalar_type() == dtype && is_held_by_layer_alone(layer.weight)) {
      layer.release_weight([packed = packed_, i] { return packed->unpacked()[i]; });
    } else {
      seen_[i] = Seen{layer.weight.const_data_ptr(), static_cast<uint32_t>(layer.weight._version())};
    }
  }
}

Tensor LinearGroup::one_by_one(const Tensor& x) {
  if (layers_.size() == 1) return layers_.front()->forward(x);
  std::vector<Tensor> outputs;
  for (Linear& layer : layers_) outputs.push_back(layer->forward(x));
  return at::cat(outputs, -1);
}

}  // namespace lora::nn
