#include "adapters/plain_form.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numbers>

#include "adapters/state.h"
#include "core/check.h"
#include "lora/adapters/dora.h"

namespace lora::adapters {
namespace {

/// PiSSA and OLoRA as plain LoRA of twice the rank on the original base: A and B beside what they began as. The scale stays.
/// Slots without a start stay as they are.
LoraOptions doubled(const AdapterSet& adapters) {
  LoraOptions options = std::get<LoraOptions>(adapters.options());
  const LoraOptions undoubled = options;
  const double factor = options.rank_stabilized ? std::numbers::sqrt2 : 2;
  options.init = "true";
  options.rank *= 2;
  options.alpha *= factor;
  for (auto& entry : options.rank_pattern) entry.second *= 2;
  for (auto& entry : options.alpha_pattern) entry.second *= 2;
  for (const auto& slot : adapters.slots()) {
    if (has_start(slot) || token_rows(*slot.adapter) != nullptr) continue;
    const LoraSize own = lora_size(undoubled, slot.path);
    options.rank_pattern.emplace(options.rank_pattern.begin(), slot.path, own.rank);
    options.alpha_pattern.emplace(options.alpha_pattern.begin(), slot.path, own.alpha);
  }
  return options;
}

/// What is in a file where the parameters themselves are not: sums with a start, ranks that are left.
void put_doubled(const AdapterSet::Slot& slot, const LoraLinear& linear, FileTensors& tensors) {
  tensors[slot.path + ".lora_A.weight"] = at::cat({linear.lora_A.detach(), linear.start_A});
  tensors[slot.path + ".lora_B.weight"] = at::cat({linear.lora_B.detach(), -linear.start_B}, 1);
}

/// As PEFT does for a tied output head, whose rows are the embedding's.
void put_tied_rows(const AdapterSet& adapters, FileTensors& tensors) {
  for (const auto& slot : adapters.slots()) {
    const auto* tied = dynamic_cast<const TiedTrainableTokens*>(slot.adapter.get());
    if (tied != nullptr) tensors[slot.path + ".trainable_tokens_delta"] = tied->rows().trainable_tokens_delta;
  }
}

/// Ranks whose E is zero add nothing. Only once an allocation was made, and while it holds: between two of them pruned ranks
/// may grow again.
bool is_pruned(const AdapterSet& adapters) {
  if (!adapters.allocator() || !adapters.allocator()->kept()) return false;
  const auto& kept = *adapters.allocator()->kept();
  for (size_t i = 0; i < kept.size(); ++i) {  // behind these there may be rows of tokens
    const auto& linear = dynamic_cast<const AdaLoraLinear&>(*adapters.slots()[i].adapter);
    const auto e_R = linear.lora_E.detach().flatten().cpu().to(at::kFloat);
    for (size_t r = 0; r < kept[i].size(); ++r) {
      if (!kept[i][r] && e_R.const_data_ptr<float>()[r] != 0) return false;
    }
  }
  return true;
}

at::Tensor indexes_of(const std::vector<bool>& kept) {
  std::vector<int64_t> indexes;
  for (size_t r = 0; r < kept.size(); ++r) {
    if (kept[r]) indexes.push_back(static_cast<int64_t>(r));
  }
  return at::tensor(indexes, at::kLong);
}

/// Fills in the pattern and cuts the tensors.
void cut_to_kept(const AdapterSet& adapters, AdaLoraOptions& options, FileTensors& tensors) {
  options.rank_pattern.emplace();
  for (size_t i = 0; i < adapters.allocator()->kept()->size(); ++i) {
    const std::string& path = adapters.slots()[i].path;
    const auto& kept = (*adapters.allocator()->kept())[i];
    (*options.rank_pattern)[path + ".lora_E"] = kept;
    for (const char* factor : {".lora_A", ".lora_B", ".lora_E"}) {
      at::Tensor& tensor = tensors.at(path + factor);
      const int64_t dim = std::string_view(factor) == ".lora_B" ? 1 : 0;
      tensor = tensor.detach().index_select(dim, indexes_of(kept).to(tensor.device()));
    }
  }
}

}  // namespace

void put_plain_form(const AdapterSet& set, MethodOptions& options, FileTensors& tensors) {
  const auto starts = [](const AdapterSet::Slot& slot) { return has_start(slot); };
  if (std::ranges::any_of(set.slots(), starts)) {
    options = doubled(set);
    for (const auto& slot : set.slots()) {
      if (has_start(slot)) put_doubled(slot, dynamic_cast<const LoraLinear&>(*slot.adapter), tensors);
    }
  }
  if (is_pruned(set)) cut_to_kept(set, std::get<AdaLoraOptions>(options), tensors);
  if (std::holds_alternative<TrainableTokensOptions>(options)) put_tied_rows(set, tensors);
}

}  // namespace lora::adapters
