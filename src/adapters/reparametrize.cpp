#include "lora/adapters/reparametrize.h"

#include <ATen/ATen.h>
#include <torch/utils.h>

#include "adapters/residual_start.h"
#include "core/check.h"

namespace lora {
namespace {

constexpr const char* kChildName = "default";

nn::LinearLayout layout_of(const torch::nn::Linear& linear) {
  return {nn::LinearLayout::Cut::kReplicated, linear->options.in_features(), linear->options.out_features(), 0, 1};
}

}  // namespace

Reparametrization::Reparametrization(torch::nn::Linear linear, const LoraOptions& options)
    : linear_(std::move(linear)), base_weight_(linear_->weight) {
  require<ConfigError>(options.dropout == 0,
                       "[adapters.reparametrize] lora_dropout must be 0 here, since the update "
                       "joins the weight and not "
                       "the input; found {}; use lora::nn::Linear for dropout",
                       options.dropout);
  require<ConfigError>(base_weight_.is_leaf() && !linear_->named_children().contains(kChildName),
                       "[adapters.reparametrize] a layer must have one adapter; found another on "
                       "it; remove() or merge() "
                       "that first");
  require<ConfigError>(!options.dora, "[adapters.reparametrize] use_dora must be off here; use lora::nn::Linear for DoRA");
  adapter_ = std::make_shared<LoraLinear>(layout_of(linear_), options.rank, options.alpha, options);
  if (adapters::starts_from_weight(options.init)) {
    const auto [a_RI, b_OR] = adapters::start_factors(options.init, base_weight_, options.rank, adapter_->scale());
    adapter_->start_from(a_RI.cpu(), b_OR.cpu());
  }
  adapter_->to(base_weight_.device());
  for (auto& parameter : linear_->parameters()) parameter.set_requires_grad(false);
  linear_->register_module(kChildName, adapter_);
  refresh();
}

void Reparametrization::refresh() { linear_->weight = base_weight_ + adapter_->weight_delta().to(base_weight_.options()); }

void Reparametrization::remove() {
  linear_->weight = base_weight_;
  if (linear_->named_children().contains(kChildName)) linear_->unregister_module(kChildName);
}

void Reparametrization::merge() {
  const torch::NoGradGuard no_grad;
  const auto delta = adapter_->weight_delta();
  const auto merged = (base_weight_.to(delta.scalar_type()) + delta).to(base_weight_.scalar_type());
  require<NonFiniteError>(merged.isfinite().all().item<bool>(),
                          "[adapters.reparametrize] merged weights must be finite; found infinite or NaN values; the "
                          "weight was left as it was");
  base_weight_.copy_(merged);
  remove();
}

Reparametrization reparametrize(torch::nn::Linear& linear, const LoraOptions& options) {
  return Reparametrization(linear, options);
}

}  // namespace lora
