#include "lora/nn/linear_group.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>
#include <typeinfo>

#include "core/check.h"
#include "core/once.h"
#include "lora/nn/probe.h"
#include "lora/nn/row_adapters.h"
#include "lora/ops/autocast.h"
#include "lora/ops/ops.h"
#include "ops/few_rows_linear.h"
#include "ops/rows.h"

namespace lora::nn {
namespace {

bool is_plain(const LinearImpl& layer) { return typeid(layer) == typeid(LinearImpl); }

bool scales_input(const LinearImpl& layer) {
  const auto& adapters = layer.slot.contributing();
  return std::any_of(adapters.begin(), adapters.end(), [](const auto& adapter) { return adapter->input_scale().defined(); });
}

/// A method that scales can share the product only where it stands alone: it scales what others added before it, and not
/// what they add after it.
bool keep_order(const std::vector<std::shared_ptr<Adapter>>& adapters) {
  return adapters.size() > 1 &&
         std::any_of(adapters.begin(), adapters.end(), [](const auto& adapter) { return adapter->scales(); });
}

/// rows (R, I) times all the weights, in `dtype` and without gradients.
Tensor products_of(const Tensor& rows_RI, at::ScalarType dtype, const ops::FrozenWeights& weights) {
  const at::NoGradGuard no_grad;
  ops::FrozenWeights without_bias = weights;
  without_bias.biases.clear();
  return ops::frozen_linear(rows_RI.detach().to(dtype), without_bias, {});
}

/// Without gradients nothing is trained.
bool is_frozen(const LinearImpl& layer) {
  if (!at::GradMode::is_enabled()) return true;
  return !layer.weight.requires_grad() && !(layer.bias.defined() && layer.bias.requires_grad());
}

/// Nobody but the layer itself holds the weight: its member and its entry among the parameters.
bool is_held_by_layer_alone(const Tensor& weight) { return weight.use_count() <= 2 && weight.storage().use_count() == 1; }

bool are_few_rows(const Tensor& x) { return x.numel() > 0 && x.numel() <= ops::rows::kFewRows * x.size(-1); }

bool rows_are_chosen_in(const std::vector<Linear>& layers) {
  return std::any_of(layers.begin(), layers.end(), [](const Linear& layer) { return rows_are_chosen(layer->slot); });
}

/// The layers' outputs side by side, of the base alone so far, with what their rows' adapters add.
Tensor with_chosen_rows(const std::vector<Linear>& layers, const Tensor& y, const Tensor& x, at::IntArrayRef outputs) {
  auto parts = y.split_with_sizes(outputs, -1);
  for (size_t i = 0; i < layers.size(); ++i) {
    const AdapterSlot& slot = layers[i]->slot;
    if (rows_are_chosen(slot)) {
      parts[i] = add_chosen_rows(slot, parts[i], x);
    } else {
      for (const auto& adapter : slot.contributing()) parts[i] = adapter->apply(x, parts[i], *layers[i].ptr());
    }
  }
  return at::cat(parts, -1);
}

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
  const bool one_type =
      std::all_of(layers.begin(), layers.end(), [&](const Linear& layer) { return layer->passing_dtype(dtype) == stored; });
  if (one_type && !all_bits(layers).empty()) return {made_whole(layers, stored)};
  std::vector<Tensor> weights;
  for (const Linear& layer : layers) weights.push_back(layer.ptr()->passing_weight(dtype));
  return weights;
}

}  // namespace

Tensor LinearGroup::forward(const Tensor& given_x, const FastPaths& fast) {
  if (probing() || !can_join(fast)) {
    if (fast.joined && !probing()) say_why_not_joined();
    return one_by_one(given_x);
  }
  // Layers that share their input run one by one when one of them scales it; where rows choose, nothing else that is active does.
  const bool chooses_rows = rows_are_chosen_in(layers_);
  const Tensor x = chooses_rows || layers_.size() > 1 ? given_x : scaled_input(layers_.front()->slot, given_x);
  require<ShapeError>(x.size(-1) == layers_.front()->options.in_features,
                      "[nn.Linear] the input's last size must be {}; found shape [{}]", layers_.front()->options.in_features,
                      fmt::join(x.sizes(), ", "));
  const auto dtype = compute_dtype(x.device().type(), x.scalar_type());
  const bool apart = are_few_rows(x) && x.scalar_type() == dtype && keeps_rows_apart(dtype, fast);
  const ops::FrozenWeights weights = is_brought() ? brought_weights(dtype, fast)
                                     : apart      ? plain_weights()
                                                  : held_weights(dtype, fast);

  if (chooses_rows) return with_chosen_rows(layers_, ops::frozen_linear(x, weights, {}), x, weights.outputs);
  const Updates updates = updates_now();
  Tensor y = apart ? ops::few_rows_linear(x, weights, updates.joined, all_bits(layers_))
                   : ops::frozen_linear(x, weights, updates.joined);
  if (!updates.scaling.empty()) y = scaled_outputs(y, weights, updates.scaling);
  if (updates.others.empty()) return y;
  say_once(
      "fast path joined: an adapter with dropout, or of a method that is no low-rank update, is computed and added by itself");
  auto parts = y.split_with_sizes(weights.outputs, -1);
  for (const auto& [i, adapter] : updates.others) parts[i] = adapter->apply(x, parts[i], *layers_[i]);
  return at::cat(parts, -1);
}

/// All layers' outputs times their adapters' scales, in one pass. The rows that scales need are multiplied together, too.
Tensor LinearGroup::scaled_outputs(const Tensor& y, const ops::FrozenWeights& weights, const AdaptersByLayer& scaling) {
  std::vector<Tensor> rows, scales(layers_.size()), shifts(layers_.size());
  for (const auto& [i, adapter] : scaling) {
    const Tensor own_RI = adapter->rows_for_scale();
    rows.push_back(own_RI.defined() ? own_RI : at::empty({0, layers_[i]->options.in_features}, y.options()));
  }
  const Tensor rows_RI = at::cat(rows);
  const Tensor rows_RO =
      rows_RI.size(0) > 0 ? products_of(rows_RI, y.scalar_type(), weights) : at::empty({0, y.size(-1)}, y.options());
  int64_t row = 0;
  for (size_t k = 0; k < scaling.size(); ++k) {
    const auto& [i, adapter] = scaling[k];
    LinearImpl& layer = *layers_[i];
    const int64_t first =
        std::accumulate(weights.outputs.begin(), weights.outputs.begin() + static_cast<std::ptrdiff_t>(i), int64_t{0});
    scales[i] = adapter->output_scale(rows_RO.narrow(0, row, rows[k].size(0)).narrow(1, first, weights.outputs[i]), layer);
    if (scales[i].defined() && layer.bias.defined() && !adapter->scales_bias()) shifts[i] = (1 - scales[i]) * layer.bias;
    row += rows[k].size(0);
  }
  const auto form = std::find_if(scales.begin(), scales.end(), [](const Tensor& scale) { return scale.defined(); });
  if (form == scales.end()) return y;
  const bool has_shift = std::any_of(shifts.begin(), shifts.end(), [](const Tensor& shift) { return shift.defined(); });
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (!shifts[i].defined()) shifts[i] = at::zeros({weights.outputs[i]}, form->options());
    if (!scales[i].defined()) scales[i] = at::ones({weights.outputs[i]}, form->options());
  }
  return ops::scale_columns(y, at::cat(scales), has_shift ? at::cat(shifts) : Tensor());
}

LinearGroup::Updates LinearGroup::updates_now() const {
  Updates updates;
  for (size_t i = 0; i < layers_.size(); ++i) {
    const auto& adapters = layers_[i]->slot.contributing();
    const bool in_order = keep_order(adapters);
    for (const auto& adapter : adapters) {
      const auto factors = adapter->low_rank();
      if (in_order || (adapter->adds() && !factors)) {
        updates.others.emplace_back(i, adapter);
        continue;
      }
      if (factors) updates.joined.push_back({factors->a_RI, factors->b_OR, factors->scale, i});
      if (adapter->scales()) updates.scaling.emplace_back(i, adapter);
    }
  }
  return updates;
}

bool LinearGroup::keeps_rows_apart(at::ScalarType dtype, const FastPaths& fast) const {
  if (at::GradMode::is_enabled() || probing() || !can_join(fast) || !reads_plain_weights(dtype, fast)) return false;
  if (rows_are_chosen_in(layers_)) return false;
  return std::all_of(layers_.begin(), layers_.end(), [](const Linear& layer) {
    const auto& adapters = layer->slot.contributing();
    return !keep_order(adapters) && std::all_of(adapters.begin(), adapters.end(), [](const auto& adapter) {
      return !adapter->adds() || adapter->low_rank().has_value();
    });
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
      say_once(
          fmt::format("fast path packed_weights: products in {} gain nothing from it on this processor", c10::toString(dtype)));
    }
    return nullptr;
  }
  pack(dtype, fast.release_plain);
  return packed_;
}

bool LinearGroup::can_join(const FastPaths& fast) const {
  const bool alone = layers_.size() == 1;
  return fast.joined && std::all_of(layers_.begin(), layers_.end(), [alone](const Linear& layer) {
           return is_plain(*layer) && is_frozen(*layer) && (alone || !scales_input(*layer));
         });
}

void LinearGroup::say_why_not_joined() const {
  if (std::any_of(layers_.begin(), layers_.end(), [](const Linear& layer) { return scales_input(*layer); })) {
    return say_once("fast path joined: layers whose input an adapter scales run one by one");
  }
  const bool all_plain = std::all_of(layers_.begin(), layers_.end(), [](const Linear& layer) { return is_plain(*layer); });
  say_once(all_plain ? "fast path joined: layers whose weights train run one by one"
                     : "fast path joined: layers of a derived type run one by one");
}

bool LinearGroup::packed_is_current() const {
  for (size_t i = 0; i < layers_.size(); ++i) {
    const LinearImpl& layer = *layers_[i];
    if (!seen_[i]) {
      if (!layer.weight_is_released()) return false;
    } else if (stamp_of(layer.weight) != *seen_[i]) {
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
      seen_[i] = stamp_of(layer.weight);
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
