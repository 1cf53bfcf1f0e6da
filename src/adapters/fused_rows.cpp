#include "lora/adapters/fused_rows.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "adapters/state.h"
#include "core/check.h"
#include "lora/adapters/lora.h"
#include "lora/nn/fused_rows.h"

namespace lora {
namespace {

void require_plain_lora(const AdapterSet& adapters) {
  const auto* lora = std::get_if<LoraOptions>(&adapters.options());
  require<ConfigError>(lora != nullptr && !lora->dora, "[adapters.fused_rows] parts of fused layers are adapted by plain LoRA; found {}; "
                       "use lora, or adapt whole layers", method_name(adapters.options()));
  require<ConfigError>(lora->init == "true" || lora->init == "gaussian", "[adapters.fused_rows] an adapter of some rows must begin with B "
                       "at zero, as init_lora_weights true and gaussian do; found {:?}", lora->init);
}

/// (O, 1): one where a row belongs to one of the parts.
at::Tensor mask_of(const nn::FusedRows& rows, const std::string& path, int64_t outputs, const std::vector<std::string>& parts) {
  std::vector<std::string> known;
  for (const auto& [part, ranges] : rows) known.push_back(part);
  require<ConfigError>(!rows.empty(), "[adapters.fused_rows] every target must be a fused layer, whose rows are queries, keys and values; "
                       "found {}; name fused layers alone in target_modules", path);
  const at::Tensor mask_O1 = at::zeros({outputs, 1}, at::kFloat);
  for (const auto& part : parts) {
    const auto found = rows.find(part);
    require<ConfigError>(found != rows.end(), "[adapters.fused_rows] a part must be one of {}; found {:?}", fmt::join(known, ", "), part);
    for (const auto& [begin, end] : found->second) mask_O1.slice(0, begin, end).fill_(1);
  }
  return mask_O1;
}

bool are_zero(const at::Tensor& numbers) { return numbers.is_meta() || at::count_nonzero(numbers).item<int64_t>() == 0; }

}  // namespace

void train_fused_rows(const torch::nn::Module& model, const AdapterSet& adapters, const std::vector<std::string>& parts) {
  require_plain_lora(adapters);
  require<ConfigError>(!parts.empty(), "[adapters.fused_rows] a part must be named at least; found none; leave the option out");
  const auto* fused = dynamic_cast<const nn::FusedLayers*>(&model);
  int64_t held = 0;
  for (const auto& slot : adapters.slots()) {
    const auto adapter = std::dynamic_pointer_cast<LoraLinear>(slot.adapter);
    const nn::FusedRows rows = fused == nullptr ? nn::FusedRows() : fused->fused_rows(slot.path);
    require<ConfigError>(adapter != nullptr && !adapter->has_start(), "[adapters.fused_rows] every target must be a fused layer; found {}",
                         slot.path);
    at::Tensor& b_OR = adapter->lora_B;
    const at::Tensor mask_O1 = mask_of(rows, slot.path, b_OR.size(0), parts).to(b_OR.device());
    require<ConfigError>(are_zero(b_OR.detach() * (1 - mask_O1)), "[adapters.fused_rows] rows of other parts must be zero; found numbers "
                         "there in {}; begin with an adapter of these parts", slot.path);
    held += (b_OR.size(0) - at::count_nonzero(mask_of(rows, slot.path, b_OR.size(0), parts)).item<int64_t>()) * b_OR.size(1);
    b_OR.register_hook([mask_O1](const at::Tensor& gradient) { return gradient * mask_O1.to(gradient.device()); });
  }
  adapters.state().held_at_zero = held;
}

int64_t numbers_held_at_zero(const AdapterSet& adapters) { return adapters.state().held_at_zero; }

}  // namespace lora
