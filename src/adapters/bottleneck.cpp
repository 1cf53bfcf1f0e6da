#include "lora/adapters/bottleneck.h"

#include <ATen/ATen.h>

#include <cmath>
#include <map>

#include "core/check.h"
#include "lora/ops/autocast.h"

namespace lora {
namespace {

using Activation = at::Tensor (*)(const at::Tensor&);

const std::map<std::string, Activation>& activations() {
  static const std::map<std::string, Activation> kActivations = {
      {"relu", at::relu},
      {"swish", at::silu},
      {"silu", at::silu},
      {"gelu", [](const at::Tensor& x) { return at::gelu(x); }},
      {"gelu_new", [](const at::Tensor& x) { return at::gelu(x, "tanh"); }},
      {"tanh", at::tanh},
      {"sigmoid", at::sigmoid},
      {"leakyrelu", [](const at::Tensor& x) { return at::leaky_relu(x); }},
      {"elu", [](const at::Tensor& x) { return at::elu(x); }},
  };
  return kActivations;
}

std::vector<std::string> activation_names() {
  std::vector<std::string> names;
  for (const auto& entry : activations()) names.push_back(entry.first);
  return names;
}

int64_t bottleneck_size(int64_t hidden, const BottleneckOptions& options) {
  require<ConfigError>(std::isfinite(options.reduction_factor) && options.reduction_factor > 0,
                       "[adapters.bottleneck] reduction_factor must be positive; found {}; use 16", options.reduction_factor);
  const double size = static_cast<double>(hidden) / options.reduction_factor;
  require<ConfigError>(size >= 1 && size <= 1e6,
                       "[adapters.bottleneck] reduction_factor must leave at least 1 of {} numbers; found {}; "
                       "use 16",
                       hidden, options.reduction_factor);
  return static_cast<int64_t>(size);
}

}  // namespace

BottleneckOptions bottleneck_preset(const std::string& name) {
  BottleneckOptions options;
  if (name == "pfeiffer") return options;
  if (name == "houlsby") {
    options.mh_adapter = true;
    options.original_ln_before = false;
    options.non_linearity = "swish";
    return options;
  }
  require<ConfigError>(name == "parallel", "[adapters.bottleneck] the kind must be houlsby, pfeiffer or parallel; found {:?}",
                       name);
  options.is_parallel = true;
  options.original_ln_before = false;
  options.reduction_factor = 2;
  options.scaling = 4;
  return options;
}

std::shared_ptr<BottleneckAdapter::Layer> BottleneckAdapter::make_layer(int64_t inputs, int64_t outputs, bool zero) {
  constexpr double kDeviation = 0.02;
  auto layer = std::make_shared<Layer>();
  at::Tensor weight = at::zeros({outputs, inputs}, at::kFloat);
  if (!zero) weight.normal_(0, kDeviation);
  layer->weight = layer->register_parameter("weight", weight);
  layer->bias = layer->register_parameter("bias", at::zeros({outputs}, at::kFloat));
  return layer;
}

BottleneckAdapter::BottleneckAdapter(int64_t hidden, const BottleneckOptions& options) : options_(options) {
  require<ConfigError>(activations().contains(options.non_linearity),
                       "[adapters.bottleneck] non_linearity must be one of {}; found {:?}", fmt::join(activation_names(), ", "),
                       options.non_linearity);
  require<ConfigError>(options.init == "bert" || options.init == "zero",
                       "[adapters.bottleneck] init_weights must be bert or zero; found {:?}", options.init);
  require<ConfigError>(options.dropout >= 0 && options.dropout < 1, "[adapters.bottleneck] dropout must be in [0, 1); found {}",
                       options.dropout);
  const int64_t size = bottleneck_size(hidden, options);
  // AdapterHub's adapter_down is a sequence of the layer and its activation.
  auto sequence = register_module("adapter_down", std::make_shared<torch::nn::Module>("Sequential"));
  down_ = sequence->register_module("0", make_layer(hidden, size, /*zero=*/false));
  up_ = register_module("adapter_up", make_layer(size, hidden, options.init == "zero"));
  if (options.learn_scaling) scaling_ = register_parameter("scaling", at::ones({1}, at::kFloat));
}

at::Tensor BottleneckAdapter::apply(const at::Tensor& out_BSD, const at::Tensor& x_BSD) {
  const auto dtype = compute_dtype(out_BSD.device().type(), out_BSD.scalar_type());
  at::Tensor input = options_.is_parallel ? x_BSD : options_.original_ln_before ? out_BSD + x_BSD : out_BSD;
  if (is_training() && options_.dropout > 0) input = at::dropout(input, options_.dropout, /*train=*/true);
  const auto dense = [dtype](const at::Tensor& x, const Layer& layer) {
    return at::linear(x.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype));
  };
  const at::Tensor network = dense(activations().at(options_.non_linearity)(dense(input, *down_)), *up_);
  const at::Tensor scaled = scaling_.defined() ? network * scaling_.to(dtype) : network * options_.scaling;
  return out_BSD + scaled.to(out_BSD.scalar_type());
}

}  // namespace lora
