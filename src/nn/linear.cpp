#include "lora/nn/linear.h"

#include <ATen/autocast_mode.h>

#include <cmath>
#include <limits>

#include "core/check.h"
#include "lora/nn/probe.h"
#include "nn/parameters.h"

namespace lora::nn {

LinearImpl::LinearImpl(const LinearOptions& options_) : options(options_) {
  weight = register_parameter("weight", new_parameter({options.out_features, options.in_features}, options.parameters));
  if (options.bias) bias = register_parameter("bias", new_parameter({options.out_features}, options.parameters));
  if (!options.parameters.initialize) return;
  const torch::NoGradGuard no_grad;
  const double bound = 1 / std::sqrt(static_cast<double>(options.in_features));
  weight.uniform_(-bound, bound);
  if (options.bias) bias.uniform_(-bound, bound);
}

Tensor LinearImpl::base_forward(const Tensor& x) {
  require<ShapeError>(x.size(-1) == options.in_features,
                      "[nn.Linear] the input's last size must be {}; found shape [{}]", options.in_features,
                      fmt::join(x.sizes(), ", "));
  restore_weight();
  // Under autocast the product casts its own inputs and keeps the cast of a trained weight for the step.
  if (weight.scalar_type() == x.scalar_type() || at::autocast::is_autocast_enabled(x.device().type())) {
    return at::linear(x, weight, bias);
  }
  return at::linear(x, weight.to(x.scalar_type()), bias.defined() ? bias.to(x.scalar_type()) : bias);
}

Tensor LinearImpl::forward(const Tensor& x) {
  Tensor y = base_forward(x);
  for (const auto& adapter : slot.contributing()) y = y + adapter->delta(x).to(y.scalar_type());
  return observed(*this, std::move(y));
}

LinearLayout LinearImpl::layout() const {
  return {LinearLayout::Cut::kReplicated, options.in_features, options.out_features, 0, 1};
}

void LinearImpl::attach(const std::string& name, std::shared_ptr<Adapter> adapter) {
  slot.add(name, adapter);
  register_module(name, std::move(adapter));
}

void LinearImpl::detach(const std::string& name) {
  if (!slot.find(name)) return;
  unmerge();
  slot.remove(name);
  unregister_module(name);
}

void LinearImpl::tie_weight(const Tensor& shared) {
  require<ShapeError>(shared.sizes() == weight.sizes(),
                      "[nn.Linear] a tied weight must have shape [{}]; found [{}]",
                      fmt::join(weight.sizes(), ", "), fmt::join(shared.sizes(), ", "));
  weight = shared;
  parameters_["weight"] = shared;
}

void LinearImpl::release_weight(std::function<Tensor()> again) {
  const torch::NoGradGuard no_grad;
  again_ = std::move(again);
  weight.set_data(at::full({1}, std::numeric_limits<double>::quiet_NaN(), weight.options()).expand(weight.sizes()));
}

void LinearImpl::restore_weight() {
  if (again_ == nullptr) return;
  const torch::NoGradGuard no_grad;
  weight.set_data(again_());
  again_ = nullptr;
}

void LinearImpl::merge() {
  restore_weight();
  slot.merge(weight);
}

void LinearImpl::unmerge() {
  restore_weight();
  slot.unmerge(weight);
}

void LinearImpl::to(torch::Device device, torch::Dtype dtype, bool non_blocking) {
  restore_weight();
  torch::nn::Module::to(device, dtype, non_blocking);
}

void LinearImpl::to(torch::Dtype dtype, bool non_blocking) {
  restore_weight();
  torch::nn::Module::to(dtype, non_blocking);
}

void LinearImpl::to(torch::Device device, bool non_blocking) {
  if (weight.device() == device) return torch::nn::Module::to(device, non_blocking);
  restore_weight();
  torch::nn::Module::to(device, non_blocking);
}

void restore_weights(torch::nn::Module& model) {
  if (auto* linear = dynamic_cast<LinearImpl*>(&model)) linear->restore_weight();
  for (const auto& module : model.modules(/*include_self=*/false)) {
    if (auto* linear = module->as<LinearImpl>()) linear->restore_weight();
  }
}

void LinearImpl::pretty_print(std::ostream& stream) const {
  stream << fmt::format("lora::nn::Linear(in_features={}, out_features={}, bias={}, adapters=[{}])",
                        options.in_features, options.out_features, options.bias, fmt::join(slot.names(), ", "));
}

}  // namespace lora::nn
