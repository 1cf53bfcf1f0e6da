#include "lora/adapters/loftq.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <optional>

#include "adapters/residual_start.h"
#include "adapters/state.h"
#include "core/check.h"
#include "lora/adapters/dora.h"
#include "lora/core/log.h"

// Legend: O outputs, I inputs, R rank.
namespace lora {
namespace {

/// One iteration's result.
struct Fit {
  ops::QuantizedTensor bits;
  adapters::StartFactors factors;
  double squared_error;  ///< of W - (Q + scale * B A)
};

double squared_norm(const at::Tensor& tensor) { return tensor.square().sum(at::kDouble).item<double>(); }

Fit fit(const at::Tensor& weight_OI, const ops::QuantizedTensor& bits, int64_t rank, double scale) {
  const at::Tensor lost_OI = weight_OI - bits.dequantize(at::kFloat);
  const auto factors = adapters::nearest_factors("loftq", lost_OI, rank, scale);
  return {bits, factors, squared_norm(lost_OI - factors.b_OR.mm(factors.a_RI) * scale)};
}

/// The best of all iterations: later ones are not always better.
Fit best_fit(const at::Tensor& weight_OI, const nn::LinearImpl& layer, int64_t rank, double scale, int64_t iterations) {
  const auto& scheme = layer.quantized_weight()->scheme();
  Fit last = fit(weight_OI, *layer.quantized_weight(), rank, scale), best = last;
  for (int64_t i = 1; i < iterations; ++i) {
    const at::Tensor left_OI = weight_OI - last.factors.b_OR.mm(last.factors.a_RI) * scale;
    const auto bits = ops::QuantizedTensor::quantize(left_OI.to(layer.weight.scalar_type()), scheme).to(weight_OI.device());
    last = fit(weight_OI, bits, rank, scale);
    if (last.squared_error < best.squared_error) best = last;
  }
  return best;
}

LoraOptions require_loftq(const AdapterSet& adapters, int64_t iterations) {
  const auto* lora = std::get_if<LoraOptions>(&adapters.options());
  require<ConfigError>(lora != nullptr && lora->init == "loftq",
                       "[adapters.loftq] the adapter must be LoRA with init \"loftq\"; found {}; inject it so",
                       lora == nullptr ? method_name(adapters.options()) : fmt::format("init {:?}", lora->init));
  const bool merged =
      std::ranges::any_of(adapters.slots(), [](const auto& slot) { return !adapters::slot_of(slot).merged().empty(); });
  require<ConfigError>(adapters.is_active() && !merged,
                       "[adapters.loftq] the adapter must be active and not merged; found {}; set it active",
                       merged ? "it merged" : "it inactive");
  require<ConfigError>(iterations >= 1, "[adapters.loftq] there must be at least 1 iteration; found {}", iterations);
  return *lora;
}

at::Tensor plain_weight_of(const AdapterSet::Slot& slot, const PlainWeight& plain_weight) {
  const at::Tensor weight_OI = plain_weight(slot.path);
  const auto& form = slot.linear->weight;
  require<ShapeError>(weight_OI.sizes() == form.sizes(), "[adapters.loftq] the plain weight of {} must be [{}]; found [{}]",
                      slot.path, fmt::join(form.sizes(), ", "), fmt::join(weight_OI.sizes(), ", "));
  return weight_OI.detach().to(form.device(), at::kFloat);
}

void start(const AdapterSet::Slot& slot, const PlainWeight& plain_weight, int64_t iterations, LoftqReport& report) {
  nn::LinearImpl& layer = *nn::Linear(slot.linear);
  auto& adapter = dynamic_cast<LoraLinear&>(*slot.adapter);
  const at::Tensor weight_OI = plain_weight_of(slot, plain_weight);
  const auto before = layer.quantized_weight();
  report.error_before += squared_norm(weight_OI - before->dequantize(at::kFloat));
  const Fit best = best_fit(weight_OI, layer, adapter.rank(), adapter.scale(), iterations);
  report.error_after += best.squared_error;
  ++report.layers;
  if (best.bits.parts() != before->parts()) {
    layer.quantize_weight(best.bits);
    ++report.requantized;
  }
  adapter.lora_A.copy_(best.factors.a_RI);
  adapter.lora_B.copy_(best.factors.b_OR);
  if (auto* dora = dynamic_cast<DoraLinear*>(&adapter)) dora->reset_magnitude(layer);
}

}  // namespace

LoftqReport initialize_loftq(const AdapterSet& adapters, const PlainWeight& plain_weight, int64_t iterations) {
  LoraOptions options = require_loftq(adapters, iterations);
  const torch::NoGradGuard no_grad;
  LoftqReport report;
  std::vector<std::string> plain;
  for (const auto& slot : adapters.slots()) {
    if (slot.linear.is_empty() || !slot.linear->weight_is_quantized()) {
      plain.push_back(slot.path);
      continue;
    }
    options.loftq = {bits_of(slot.linear->quantized_weight()->scheme().type), iterations};
    start(slot, plain_weight, iterations, report);
  }
  require<ConfigError>(report.layers > 0,
                       "[adapters.loftq] some target must be in few bits; found none; quantise the base, or use another init");
  if (!plain.empty()) {
    log::warn(fmt::format("[adapters.loftq] {} targets are not in few bits and begin as with true: {}", plain.size(),
                          fmt::join(plain, ", ")));
  }
  report.error_before = std::sqrt(report.error_before);
  report.error_after = std::sqrt(report.error_after);
  adapters.state().options = options;
  return report;
}

}  // namespace lora
