#include "lora/adapters/token_start.h"

#include <ATen/ATen.h>
#include <torch/utils.h>

#include <utility>

#include "adapters/mismatches.h"
#include "adapters/peft_names.h"
#include "core/check.h"
#include "lora/adapters/method_config.h"
#include "lora/core/pattern.h"

namespace lora {
namespace {

using adapters::FileTensors;
using adapters::fits;
using adapters::Mismatches;

std::optional<TokenIndices> saved_token_indices(const MethodOptions& options) {
  if (const auto* rows = std::get_if<TrainableTokensOptions>(&options)) return rows->token_indices;
  if (const auto* lora = std::get_if<LoraOptions>(&options)) return lora->token_indices;
  if (const auto* adalora = std::get_if<AdaLoraOptions>(&options)) return adalora->token_indices;
  return std::nullopt;
}

/// A list is of whatever table there are rows of.
std::vector<int64_t> ids_at(const TokenIndices& indices, const std::string& path) {
  if (const auto* ids = std::get_if<std::vector<int64_t>>(&indices)) return *ids;
  for (const auto& [name, ids] : std::get<1>(indices)) {
    if (matches_suffix(path, name)) return ids;
  }
  return {};
}

std::optional<at::Tensor> saved_rows_at(const FileTensors& tensors, const std::string& path) {
  for (const char* end : {".trainable_tokens_delta", ".token_adapter.trainable_tokens_delta"}) {
    const auto found = tensors.find(std::string(adapters::kFilePrefix) + path + end);
    if (found != tensors.end()) return found->second;
  }
  return std::nullopt;
}

}  // namespace

void start_token_rows(const AdapterSet& adapters, const io::AdapterFiles& files) {
  const MethodOptions saved = options_from(files.config);
  const std::optional<TokenIndices> ids = saved_token_indices(saved);
  size_t found = 0;
  Mismatches mismatches;
  std::vector<std::pair<at::Tensor, at::Tensor>> copies;
  for (const auto& slot : adapters.slots()) {
    const auto* rows = dynamic_cast<const TrainableTokens*>(slot.adapter.get());
    if (rows == nullptr) continue;
    ++found;
    require<ConfigError>(
        ids && ids_at(*ids, slot.path) == rows->ids(),
        "[adapters.tokens_from] the saved adapter must have the rows of the same tokens at {}; found others; give both the "
        "same trainable_token_indices",
        slot.path);
    const at::Tensor& place = rows->trainable_tokens_delta;
    const auto value = saved_rows_at(files.tensors, slot.path);
    if (!value) {
      mismatches.missing(slot.path + ".trainable_tokens_delta");
    } else if (!fits(*value, place)) {
      mismatches.misshapen(slot.path + ".trainable_tokens_delta", *value, place);
    } else {
      copies.emplace_back(place, *value);
    }
  }
  require<ConfigError>(found > 0,
                       "[adapters.tokens_from] the adapter must train rows of tokens; found none; give trainable_token_indices");
  mismatches.require_none();
  const torch::NoGradGuard no_grad;
  for (auto& [place, value] : copies) place.copy_(value);
}

}  // namespace lora
