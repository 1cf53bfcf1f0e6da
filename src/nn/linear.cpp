#include "lora/nn/linear.h"

#include <ATen/autocast_mode.h>

#include <cmath>
#include <unordered_map>

#include "core/check.h"
#include "lora/nn/probe.h"
#include "lora/nn/recompute.h"
#include "lora/nn/row_adapters.h"
#include "lora/ops/autocast.h"
#include "nn/parameters.h"

namespace lora::nn {
namespace {

/// Under autocast the product casts its own inputs and keeps the cast of a trained weight for the step.
Tensor product(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  if (at::autocast::is_autocast_enabled(x.device().type())) return at::linear(x, weight, bias);
  // A trained bias is fp32 on any base.
  return at::linear(x, weight.to(x.scalar_type()), bias.defined() ? bias.to(x.scalar_type()) : bias);
}

/// The same without autograd keeping the weight: the backward pass asks for it again.
Tensor brought_product(const Tensor& x, const std::function<Tensor()>& bring, const Tensor& bias) {
  const auto body = [bring, bias](const std::vector<Tensor>& inputs) {
    return std::vector<Tensor>{product(inputs.front(), bring(), bias)};
  };
  const bool learns = x.requires_grad() || (bias.defined() && bias.requires_grad());
  return (learns ? recomputed(body, {x}) : body({x})).front();
}

}  // namespace

LinearImpl::LinearImpl(const LinearOptions& options_) : options(options_) {
  const std::vector<int64_t> shape = {options.out_features, options.in_features};
  const auto& parameters = options.parameters;
  const bool is_held = parameters.allocate && (!parameters.quantization || parameters.initialize);
  weight =
      register_parameter("weight", is_held ? new_parameter(shape, parameters) : placeholder(shape, tensor_options(parameters)));
  if (options.bias) bias = register_parameter("bias", new_parameter({options.out_features}, options.parameters));
  if (!options.parameters.initialize || !options.parameters.allocate) return;
  const torch::NoGradGuard no_grad;
  const double bound = 1 / std::sqrt(static_cast<double>(options.in_features));
  weight.uniform_(-bound, bound);
  if (options.bias) bias.uniform_(-bound, bound);
  if (parameters.quantization) quantize_weight(ops::QuantizedTensor::quantize(weight, *parameters.quantization));
}

Tensor LinearImpl::base_forward(const Tensor& x) {
  require<ShapeError>(x.size(-1) == options.in_features, "[nn.Linear] the input's last size must be {}; found shape [{}]",
                      options.in_features, fmt::join(x.sizes(), ", "));
  return product_with(x, bias);
}

Tensor LinearImpl::times_weight(const Tensor& x) { return product_with(x, {}); }

/// With the weight wherever it is.
Tensor LinearImpl::product_with(const Tensor& x, const Tensor& added) {
  if (weight_is_streamed())
    return brought_product(
        x, [stream = stream_, place = place_] { return stream->get(place); }, added);
  if (weight_is_quantized()) {
    const auto dtype = passing_dtype(compute_dtype(x.device().type(), x.scalar_type()));
    return brought_product(
        x, [bits = bits_, dtype] { return bits->dequantize(dtype); }, added);
  }
  restore_weight();
  return product(x, weight, added);
}

Tensor LinearImpl::forward(const Tensor& x) {
  if (rows_are_chosen(slot)) return observed(*this, add_chosen_rows(slot, base_forward(x), x));
  Tensor y = base_forward(scaled_input(slot, x));
  for (const auto& adapter : slot.contributing()) y = adapter->apply(x, y, *this);
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
  require<ShapeError>(shared.sizes() == weight.sizes(), "[nn.Linear] a tied weight must have shape [{}]; found [{}]",
                      fmt::join(weight.sizes(), ", "), fmt::join(shared.sizes(), ", "));
  weight = shared;
  parameters_["weight"] = shared;
}

void LinearImpl::untie_weight() {
  weight = weight.detach().clone().set_requires_grad(weight.requires_grad());
  parameters_["weight"] = weight;
}

void LinearImpl::release_weight(std::function<Tensor()> again) {
  const torch::NoGradGuard no_grad;
  again_ = std::move(again);
  weight.set_data(placeholder(weight.sizes(), weight.options()));
}

void LinearImpl::stream_weight(const std::shared_ptr<WeightStream>& stream, size_t block, WeightStream::Read read) {
  const torch::NoGradGuard no_grad;
  place_ = stream->add(block, weight.sizes().vec(), weight.scalar_type(), std::move(read));
  stream_ = stream;
  again_ = [stream, place = place_] { return stream->copy(place); };
  weight.set_data(placeholder(weight.sizes(), weight.options().device(stream->device())));
}

void LinearImpl::quantize_weight(const ops::QuantizedTensor& bits) {
  require<ShapeError>(weight.sizes() == at::IntArrayRef(bits.shape()),
                      "[nn.Linear] a weight in few bits must have the layer's shape [{}]; found [{}]",
                      fmt::join(weight.sizes(), ", "), fmt::join(bits.shape(), ", "));
  const torch::NoGradGuard no_grad;
  if (weight_is_released()) restore_weight();
  bits_ = std::make_shared<const ops::QuantizedTensor>(bits.to(weight.device()));
  again_ = [this] { return bits_->dequantize(weight.scalar_type()); };
  weight.set_requires_grad(false);
  weight.set_data(placeholder(weight.sizes(), weight.options()));
}

at::ScalarType LinearImpl::passing_dtype(std::optional<at::ScalarType> of_product) const {
  // A number of fp32 that is rounded to the product's type is rounded once either way.
  return weight.scalar_type() == at::kFloat ? of_product.value_or(at::kFloat) : weight.scalar_type();
}

Tensor LinearImpl::passing_weight(std::optional<at::ScalarType> of_product) {
  if (weight_is_streamed()) return stream_->get(place_);
  if (weight_is_quantized()) return bits_->dequantize(passing_dtype(of_product));
  restore_weight();
  return weight;
}

void LinearImpl::restore_weight() {
  if (again_ == nullptr) return;
  const torch::NoGradGuard no_grad;
  weight.set_data(again_());
  again_ = nullptr;
  bits_ = nullptr;
  if (stream_) stream_->drop(place_);
  stream_ = nullptr;
}

void LinearImpl::merge() {
  restore_weight();
  slot.merge(weight, bias);
}

void LinearImpl::unmerge() {
  if (slot.merged().empty()) return;
  restore_weight();
  slot.unmerge(weight, bias);
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
  if (weight_is_quantized() && weight.device() != device) {
    const torch::NoGradGuard no_grad;
    bits_ = std::make_shared<const ops::QuantizedTensor>(bits_->to(device));
    weight.set_data(placeholder(weight.sizes(), weight.options().device(device)));
  }
  if (weight.device() != device) restore_weight();
  torch::nn::Module::to(device, non_blocking);
}

WeightStamp stamp_of(const Tensor& weight) { return {weight.const_data_ptr(), static_cast<uint32_t>(weight._version())}; }

void restore_weights(torch::nn::Module& model) {
  if (auto* linear = dynamic_cast<LinearImpl*>(&model)) linear->restore_weight();
  for (const auto& module : model.modules(/*include_self=*/false)) {
    if (auto* linear = module->as<LinearImpl>()) linear->restore_weight();
  }
}

std::vector<ReadableParameter> readable_parameters(const torch::nn::Module& model) {
  std::unordered_map<const at::TensorImpl*, std::shared_ptr<const LinearImpl>> released;
  for (const auto& module : model.modules(/*include_self=*/false)) {
    const auto linear = std::dynamic_pointer_cast<const LinearImpl>(module);
    if (linear && linear->weight_is_released()) released.emplace(linear->weight.unsafeGetTensorImpl(), linear);
  }
  std::vector<ReadableParameter> found;
  for (const auto& entry : model.named_parameters()) {
    const Tensor& parameter = entry.value();
    const auto owner = released.find(parameter.unsafeGetTensorImpl());
    if (owner == released.end()) {
      found.push_back({entry.key(), parameter, [parameter] { return parameter; }});
    } else {
      found.push_back({entry.key(), parameter, [linear = owner->second] { return linear->weight_value(); }});
    }
  }
  return found;
}

void LinearImpl::pretty_print(std::ostream& stream) const {
  stream << fmt::format("lora::nn::Linear(in_features={}, out_features={}, bias={}, adapters=[{}])", options.in_features,
                        options.out_features, options.bias, fmt::join(slot.names(), ", "));
}

}  // namespace lora::nn
