#include "lora/nn/adapter.h"

#include <ATen/ATen.h>
#include <torch/utils.h>

#include <algorithm>

#include "core/check.h"
#include "lora/nn/linear.h"
#include "lora/ops/ops.h"
#include "ops/rows.h"

namespace lora::nn {
namespace {

/// In the type of `like`, after a check.
Tensor narrowed(const Tensor& wide, const Tensor& like, const std::vector<std::string>& names) {
  const Tensor result = wide.to(like.scalar_type());
  require<NonFiniteError>(result.isfinite().all().item<bool>(),
                          "[adapter.merge] merged weights must be finite; found infinite or NaN values with {}; "
                          "the weight was left as it was",
                          fmt::join(names, ", "));
  return result;
}

}  // namespace

void require_attachable(const std::string& name, bool is_taken) {
  require<ConfigError>(!name.empty() && name.find('.') == std::string::npos,
                       "[adapter.attach] an adapter's name must be a word without dots; found \"{}\"", name);
  require<ConfigError>(!is_taken,
                       "[adapter.attach] adapter names must be unique; found \"{}\" attached already; "
                       "choose another name or remove the first",
                       name);
}

Tensor scaled_input(const AdapterSlot& slot, const Tensor& x) {
  Tensor scaled = x;
  for (const auto& adapter : slot.contributing()) {
    const Tensor scale_I = adapter->input_scale();
    if (scale_I.defined()) scaled = ops::scale_columns(scaled, scale_I);
  }
  return scaled;
}

Tensor scaled_output(Adapter& adapter, const Tensor& y, LinearImpl& layer) {
  Tensor rows_RO;
  if (const Tensor rows_RI = adapter.rows_for_scale(); rows_RI.defined()) {
    const torch::NoGradGuard no_grad;
    rows_RO = layer.times_weight(rows_RI);
  }
  const Tensor scale_O = adapter.output_scale(rows_RO, layer);
  if (!scale_O.defined()) return y;
  const bool spares_bias = layer.bias.defined() && !adapter.scales_bias();
  return ops::scale_columns(y, scale_O, spares_bias ? (1 - scale_O) * layer.bias : Tensor());
}

Tensor Adapter::apply(const Tensor& x, const Tensor& y, LinearImpl& layer) {
  const Tensor sum = adds() ? y + delta(x).to(y.scalar_type()) : y;
  return scales() ? scaled_output(*this, sum, layer) : sum;
}

Tensor Adapter::apply_to_rows(const Tensor& ids, const Tensor& y, const Tensor& /*table*/) {
  return y + delta(ids).to(y.scalar_type());
}

Tensor Adapter::merged(const Tensor& weight, const Tensor& /*base*/) const {
  const Tensor delta = weight_delta();
  return weight.to(at::promote_types(weight.scalar_type(), delta.scalar_type())) + delta;
}

void AdapterSlot::merge(Tensor& weight, Tensor& bias) {
  require<ConfigError>(merged_.empty(), "[adapter.merge] adapters must be merged once; found {} merged already; unmerge first",
                       fmt::join(merged_, ", "));
  const auto& adapters = Attachments<Adapter>::contributing();
  if (adapters.empty()) return;
  const torch::NoGradGuard no_grad;
  const Tensor base = ops::rows::widened(weight.detach());
  Tensor wide = base, wide_bias = bias.defined() ? ops::rows::widened(bias.detach()) : bias;
  for (const auto& adapter : adapters) {
    wide = adapter->merged(wide, base);
    if (bias.defined()) wide_bias = adapter->merged_bias(wide_bias);
  }
  const Tensor new_weight = narrowed(wide, weight, active());
  const Tensor new_bias = bias.defined() ? narrowed(wide_bias, bias, active()) : bias;
  const bool is_sum = std::none_of(adapters.begin(), adapters.end(), [](const auto& adapter) { return adapter->scales(); });
  if (!is_sum) {
    former_weight_ = weight.detach().clone();
    if (bias.defined()) former_bias_ = bias.detach().clone();
  }
  weight.copy_(new_weight);
  if (bias.defined()) bias.copy_(new_bias);
  merged_ = active();
}

void AdapterSlot::unmerge(Tensor& weight, Tensor& bias) {
  if (merged_.empty()) return;
  const torch::NoGradGuard no_grad;
  if (former_weight_.defined()) {
    weight.copy_(former_weight_);
    if (bias.defined()) bias.copy_(former_bias_);
    former_weight_ = former_bias_ = Tensor();
  } else {
    for (const auto& name : merged_) {
      const Tensor delta = find(name)->weight_delta();
      weight.copy_((weight.to(delta.scalar_type()) - delta).to(weight.scalar_type()));
    }
  }
  merged_.clear();
}

}  // namespace lora::nn
