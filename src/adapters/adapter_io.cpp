#include "lora/adapters/adapter_io.h"

#include <ATen/ATen.h>
#include <torch/utils.h>

#include <algorithm>
#include <numbers>
#include <set>

#include "adapters/inject_as_stored.h"
#include "adapters/listing.h"
#include "adapters/state.h"
#include "core/check.h"
#include "core/overloaded.h"
#include "lora/adapters/dora.h"
#include "lora/adapters/inject.h"
#include "lora/core/log.h"
#include "lora/core/pattern.h"

namespace lora {
namespace {

constexpr std::string_view kPrefix = "base_model.model.";
constexpr std::string_view kBaseLayerWeight = ".base_layer.weight";

/// Where the tensors of a file belong, by their file names without the prefix.
using Places = std::map<std::string, at::Tensor>;
using FileTensors = std::map<std::string, at::Tensor>;

constexpr const char* kPromptEmbeddings = "prompt_embeddings";

/// LoRA's factors of a Linear are modules in PEFT and end in ".weight"; everything else is a bare parameter. Rows of tokens
/// beside another method are in a module of their own.
std::string factor_name(const AdapterSet& adapters, const AdapterSet::Slot& slot, const std::string& parameter) {
  const bool is_alone = std::holds_alternative<TrainableTokensOptions>(adapters.options());
  if (token_rows(*slot.adapter) != nullptr) return slot.path + (is_alone ? "." : ".token_adapter.") + parameter;
  const bool is_module = (parameter == "lora_A" || parameter == "lora_B") && dynamic_cast<const LoraLinear*>(slot.adapter.get());
  return slot.path + "." + parameter + (is_module ? ".weight" : "");
}

/// AdapterHub's name of a parameter: it keeps all adapters of a place in one module.
std::string hub_name(const AdapterSet::BlockSlot& block, const std::string& adapter, const std::string& parameter) {
  return block.path + ".adapters." + adapter + "." + parameter;
}

/// PEFT puts an adapted layer's own parameters one level deeper.
std::string bias_name(const AdapterSet& adapters, const std::string& name) {
  const auto& slots = adapters.slots();
  const bool adapted = std::ranges::any_of(slots, [&](const auto& slot) { return name == slot.path + ".bias"; });
  if (!adapted) return name;
  return name.substr(0, name.rfind('.')) + ".base_layer.bias";
}

at::Tensor trained_value(const AdapterSet& adapters, const AdapterSet::SavedParameter& saved) {
  return adapters.state().trained_values_in_model ? saved.parameter : saved.other;
}

Places places_of(const AdapterSet& adapters) {
  Places places;
  for (const auto& slot : adapters.slots()) {
    for (const auto& parameter : slot.adapter->named_parameters()) {
      places[factor_name(adapters, slot, parameter.key())] = parameter.value();
    }
  }
  for (const auto& block : adapters.blocks()) {
    for (const auto& parameter : block.adapter->named_parameters()) {
      places[hub_name(block, adapters.name(), parameter.key())] = parameter.value();
    }
  }
  for (const auto& saved : adapters.saved_parameters()) places[saved.name] = trained_value(adapters, saved);
  for (const auto& bias : adapters.biases()) places[bias_name(adapters, bias.name)] = trained_value(adapters, bias);
  return places;
}

/// `text` without the first occurrence of `part`.
std::string without(const std::string& text, const std::string& part) {
  const size_t at = text.find(part);
  return at == std::string::npos ? text : text.substr(0, at) + text.substr(at + part.size());
}

/// A state dict that was written without PEFT's save function still has the adapter's name in it.
std::string without_adapter_name(const std::string& file_name, const std::string& adapter) {
  for (const char* factor : {".lora_A", ".lora_B", ".lora_E", ".lora_embedding_A", ".lora_embedding_B", ".lora_magnitude_vector",
                             ".ia3_l", ".trainable_tokens_delta"}) {
    const std::string named = factor + ("." + adapter);
    const size_t at = file_name.find(named);
    const size_t end = at + named.size();
    if (at == std::string::npos || (end != file_name.size() && file_name[end] != '.')) continue;
    return file_name.substr(0, end - adapter.size() - 1) + file_name.substr(end);
  }
  return without(file_name, ".modules_to_save." + adapter);
}

/// AdapterHub's name with our adapter in the place of the one that it was saved as.
std::string with_own_name(const std::string& file_name, const std::string& adapter) {
  constexpr std::string_view kAdapters = ".adapters.";
  const size_t begin = file_name.find(kAdapters);
  if (begin == std::string::npos) return file_name;
  const size_t end = file_name.find('.', begin + kAdapters.size());
  return end == std::string::npos ? file_name : file_name.substr(0, begin + kAdapters.size()) + adapter + file_name.substr(end);
}

/// The place that a file's tensor name means; the name as it is when it means none.
std::string place_name(const std::string& file_name, const std::string& adapter, const Places& places) {
  const std::string bare = file_name.starts_with(kPrefix) ? file_name.substr(kPrefix.size()) : file_name;
  std::vector<std::string> readings = {bare, without_adapter_name(bare, adapter), without_adapter_name(bare, "default"),
                                       with_own_name(bare, adapter)};
  if (bare.ends_with(".lora_magnitude_vector.weight")) readings.push_back(bare.substr(0, bare.rfind('.')));
  // Older files name the bias of an adapted layer as the base model does; ours may hold a layer
  // only another adapts.
  readings.push_back(without(bare, ".base_layer"));
  if (bare.ends_with(".bias")) readings.push_back(bare.substr(0, bare.rfind('.')) + ".base_layer.bias");
  const auto known = std::ranges::find_if(readings, [&](const auto& name) { return places.contains(name); });
  return known == readings.end() ? bare : *known;
}

/// The adapted layer whose frozen weight a file repeats under `name`; null for anything else.
const AdapterSet::Slot* base_copy_of(const AdapterSet& adapters, const std::string& name) {
  if (!name.ends_with(kBaseLayerWeight)) return nullptr;
  const auto path = std::string_view(name).substr(0, name.size() - kBaseLayerWeight.size());
  const auto& slots = adapters.slots();
  const auto found = std::ranges::find_if(slots, [&](const auto& slot) { return slot.path == path; });
  return found == slots.end() ? nullptr : &*found;
}

bool fits(const at::Tensor& value, const at::Tensor& place) {
  return value.sizes() == place.sizes() && value.is_floating_point();
}

/// With bias: all PEFT writes biases of modules that train whole a second time, under the name of what wraps them.
bool is_within_wrapper(const std::string& file_name) { return file_name.find(".modules_to_save.") != std::string::npos; }

/// Of a module that trains whole PEFT may write the frozen original as well.
bool is_copy_of_original(const std::string& name, const Places& places) {
  const std::string plain = without(name, ".original_module");
  return plain != name && places.contains(plain);
}

/// The embeddings or the head, which PEFT writes besides when it thinks that the vocabulary grew: the base has the same.
bool is_copy_of_table(const AdapterSet& adapters, const std::string& name, const at::Tensor& value) {
  const auto& tables = adapters.state().tables;
  const auto found = std::ranges::find_if(tables, [&](const auto& table) { return table.path + ".weight" == name; });
  if (found == tables.end()) return false;
  const at::Tensor weight = adapters::weight_value_of(*found);
  return fits(value, weight) && value.to(weight.options()).equal(weight);
}

/// What PEFT writes a second time for a tied output head, under one or the other name.
const AdapterSet::Slot* tied_rows_of(const AdapterSet& adapters, const std::string& name) {
  const auto found = std::ranges::find_if(adapters.slots(), [&](const auto& slot) {
    const bool is_tied = dynamic_cast<const TiedTrainableTokens*>(slot.adapter.get()) != nullptr;
    return is_tied && without(name, ".base_layer") == slot.path + ".trainable_tokens_delta";
  });
  return found == adapters.slots().end() ? nullptr : &*found;
}

std::string shape_text(const at::Tensor& tensor) {
  return fmt::format("{} [{}]", c10::toString(tensor.scalar_type()), fmt::join(tensor.sizes(), ", "));
}

/// What stands between a file and an adapter; each list becomes one part of the message.
class Mismatches {
 public:
  void missing(const std::string& name) { missing_.push_back(adapters::quote_name(name)); }
  void extra(const std::string& name) { extra_.push_back(adapters::quote_name(name)); }
  void misshapen(const std::string& name, const at::Tensor& value, const at::Tensor& place) {
    misshapen_.push_back(fmt::format("{} ({} in the file, float [{}] in the model)", adapters::quote_name(name),
                                     shape_text(value), fmt::join(place.sizes(), ", ")));
  }

  void require_none() const {
    std::vector<std::string> parts;
    const auto add = [&](const char* what, const std::vector<std::string>& names) {
      if (!names.empty()) parts.push_back(fmt::format("{} {}: {}", names.size(), what, adapters::listed(names)));
    };
    add("missing", missing_);
    add("without a place", extra_);
    add("of another shape", misshapen_);
    require<ShapeError>(parts.empty(),
                        "[adapters.load] the file's tensors must be exactly the adapter's; found {}; check r, "
                        "rank_pattern and target_modules of adapter_config.json, and that it belongs to this base "
                        "model",
                        fmt::join(parts, "; "));
  }

 private:
  std::vector<std::string> missing_, extra_, misshapen_;
};

/// Room for an adapter whose config and tensors disagree in an honest way, so that the message can
/// name them.
double max_elements_for(const FileTensors& tensors) {
  double sum = 1e6;
  for (const auto& entry : tensors) sum += 4 * static_cast<double>(entry.second.numel());
  return sum;
}

/// PEFT repeats the frozen table of an adapted embedding. It is not loaded: the base model's own is
/// in place.
void check_base_copy(const AdapterSet::Slot& slot, const std::string& file_name, const at::Tensor& value,
                     Mismatches& mismatches) {
  const auto weight = adapters::weight_value_of(slot);
  if (!fits(value, weight)) {
    mismatches.misshapen(file_name, value, weight);
  } else if (!value.to(weight.options()).equal(weight)) {
    log::warn(
        fmt::format("[adapters.load] {} differs from the base model's weight, which stays; the "
                    "adapter may have "
                    "been trained on another base",
                    file_name));
  }
}

/// The copy of a tied head's rows is the embedding's, which is loaded.
void check_tied_rows(const AdapterSet::Slot& slot, const std::string& file_name, const at::Tensor& value,
                     Mismatches& mismatches) {
  const at::Tensor& rows = token_rows(*slot.adapter)->trainable_tokens_delta;
  if (!fits(value, rows)) mismatches.misshapen(file_name, value, rows);
}

/// In fp32, which adapters compute in.
void require_finite(const std::string& name, const at::Tensor& value) {
  require<NonFiniteError>(
      value.to(at::kFloat).isfinite().all().item<bool>(),
      "[adapters.load] an adapter's numbers must be finite; found NaN or infinity in {}; the file is damaged, or "
      "of a training that failed: take an earlier one",
      adapters::quote_name(name));
}

at::Tensor to_file(const at::Tensor& tensor) { return tensor.detach().to(at::kCPU, at::kFloat).contiguous(); }

/// What a network makes of virtual tokens: what is saved depends on no chance, and saving draws no random numbers of the run.
at::Tensor without_dropout(PromptEncoder& prompt) {
  const at::NoGradGuard no_grad;
  const bool was_training = prompt.is_training();
  prompt.eval();
  at::Tensor flat = prompt.flat();
  prompt.train(was_training);
  return flat;
}

bool has_start(const AdapterSet& adapters) { return std::ranges::any_of(adapters.slots(), adapters::has_start); }

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
  require<ConfigError>(
      options.alpha_pattern.empty() || !options.rank_stabilized,
      "[adapters.save] alpha_pattern must be empty with use_rslora where PiSSA or OLoRA is saved as plain LoRA: PEFT's "
      "alphas are whole numbers; found {} entries",
      options.alpha_pattern.size());
  for (auto& entry : options.alpha_pattern) entry.second *= 2;
  for (const auto& slot : adapters.slots()) {
    if (adapters::has_start(slot) || token_rows(*slot.adapter) != nullptr) continue;
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

/// What a reader of the file wants to know of the model.
void describe_model(const AdapterSet& adapters, formats::AdapterConfig& config) {
  const auto describe = [&](formats::PeftPromptLearning& prompt) {
    const nn::PromptShape shape = adapters.state().prompt_shape;
    const bool is_prefix = adapters.prompt()->is_prefix();
    prompt.num_layers = shape.layers;
    prompt.num_attention_heads = is_prefix ? shape.kv_heads : shape.heads;
    prompt.token_dim = is_prefix ? shape.kv_heads * shape.head_dim : shape.hidden;
  };
  std::visit(Overloaded{[&](formats::PeftPrefixConfig& prefix) { describe(prefix.prompt); },
                        [&](formats::PeftPromptConfig& prompt) { describe(prompt.prompt); },
                        [&](formats::PeftPTuningConfig& ptuning) { describe(ptuning.prompt); },
                        [&](formats::AdapterHubConfig& hub) {
                          hub.name = adapters.name();
                          hub.hidden_size = adapters.blocks().front().block->hidden();
                          hub.model_type = adapters.state().model_type;
                          hub.model_class = adapters.state().model_class;
                        },
                        [](auto&) {}},
             config);
}

/// What a config says of the model that its virtual tokens were made for, where it says anything.
void require_described_model(const AdapterSet& adapters, const formats::AdapterConfig& config) {
  if (!adapters.prompt()) return;
  formats::AdapterConfig own = config;
  describe_model(adapters, own);
  const auto require_same = [](const char* key, int64_t said, int64_t found) {
    require<ShapeError>(
        said == 0 || said == found,
        "[adapters.load] virtual tokens must be those of this base model; found {} {} in adapter_config.json, and {} in "
        "the model; give the base that they were made for",
        key, said, found);
  };
  const auto compare = [&](const formats::PeftPromptLearning& said, const formats::PeftPromptLearning& found) {
    require_same("num_layers", said.num_layers, found.num_layers);
    require_same("token_dim", said.token_dim, found.token_dim);
    if (adapters.prompt()->is_prefix()) require_same("num_attention_heads", said.num_attention_heads, found.num_attention_heads);
  };
  std::visit(
      [&](const auto& said) {
        using Config = std::remove_cvref_t<decltype(said)>;
        if constexpr (requires { said.prompt; }) compare(said.prompt, std::get<Config>(own).prompt);
      },
      config);
}

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
    const auto found = tensors.find(std::string(kPrefix) + path + end);
    if (found != tensors.end()) return found->second;
  }
  return std::nullopt;
}

void load_prompt(const AdapterSet& adapters, const FileTensors& tensors) {
  Mismatches mismatches;
  const at::Tensor* found = nullptr;
  for (const auto& [name, value] : tensors) {
    if (name == kPromptEmbeddings) {
      found = &value;
    } else {
      mismatches.extra(name);
    }
  }
  if (found == nullptr) mismatches.missing(kPromptEmbeddings);
  mismatches.require_none();
  require_finite(kPromptEmbeddings, *found);
  adapters.prompt()->load_flat(*found);
}

}  // namespace

io::AdapterFiles adapter_to_files(const AdapterSet& adapters) {
  MethodOptions options = adapters.options();
  FileTensors tensors = places_of(adapters);
  if (has_start(adapters)) {
    options = doubled(adapters);
    for (const auto& slot : adapters.slots()) {
      if (adapters::has_start(slot)) put_doubled(slot, dynamic_cast<const LoraLinear&>(*slot.adapter), tensors);
    }
  }
  if (is_pruned(adapters)) cut_to_kept(adapters, std::get<AdaLoraOptions>(options), tensors);
  io::AdapterFiles files{.config = config_from(options), .tensors = {}};
  describe_model(adapters, files.config);
  if (std::holds_alternative<TrainableTokensOptions>(options)) put_tied_rows(adapters, tensors);
  const std::string prefix = std::holds_alternative<BottleneckOptions>(options) ? "" : std::string(kPrefix);
  for (const auto& [name, tensor] : tensors) files.tensors[prefix + name] = to_file(tensor);
  if (adapters.prompt()) files.tensors[kPromptEmbeddings] = to_file(without_dropout(*adapters.prompt()));
  return files;
}

void load_adapter_tensors(const AdapterSet& adapters, const FileTensors& tensors) {
  if (adapters.prompt()) return load_prompt(adapters, tensors);
  const auto places = places_of(adapters);
  std::map<std::string, at::Tensor> values;  // by place
  std::map<std::string, std::string> file_names;
  Mismatches mismatches;
  for (const auto& [file_name, value] : tensors) {
    const std::string name = place_name(file_name, adapters.name(), places);
    const auto place = places.find(name);
    if (place != places.end()) {
      if (!fits(value, place->second)) mismatches.misshapen(file_name, value, place->second);
      const auto [first, is_new] = values.emplace(name, value);
      const std::string& first_name = file_names.emplace(name, file_name).first->second;
      const bool is_copy = is_within_wrapper(file_name) != is_within_wrapper(first_name);
      if (!is_new && !(is_copy && first->second.equal(value))) mismatches.extra(file_name);
    } else if (is_copy_of_original(name, places) || is_copy_of_table(adapters, name, value)) {
      continue;
    } else if (const auto* slot = base_copy_of(adapters, name)) {
      check_base_copy(*slot, file_name, value, mismatches);
    } else if (const auto* tied = tied_rows_of(adapters, name)) {
      check_tied_rows(*tied, file_name, value, mismatches);
    } else {
      mismatches.extra(file_name);
    }
  }
  for (const auto& [name, place] : places) {
    if (!values.contains(name)) mismatches.missing(name);
  }
  mismatches.require_none();
  for (const auto& [name, value] : values) require_finite(name, value);

  const torch::NoGradGuard no_grad;
  for (const auto& [name, value] : values) at::Tensor(places.at(name)).copy_(value);
}

namespace {

/// A base of plain numbers may well be the rounded one; only the user can tell.
void warn_unless_in_few_bits(const AdapterSet& adapters) {
  const auto* options = std::get_if<LoraOptions>(&adapters.options());
  if (options == nullptr || !options->loftq) return;
  const auto is_plain = [](const auto& slot) { return !slot.linear.is_empty() && !slot.linear->weight_is_quantized(); };
  if (std::ranges::none_of(adapters.slots(), is_plain)) return;
  log::warn(
      fmt::format("[adapters.load] the adapter makes up for the rounding of a base in {} bits (LoftQ), and is wrong on the plain "
                  "model; found plain weights; load the model in {} bits as in training{}, unless these are its numbers",
                  options->loftq->bits, options->loftq->bits,
                  options->loftq->iterations > 1 ? fmt::format(", the one in {}", options->base_model_name) : ""));
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

AdapterSet adapter_from_files(torch::nn::Module& model, const io::AdapterFiles& files, const std::string& name,
                              const std::optional<MethodOptions>& options) {
  const auto active_before = active_adapters(model);
  const auto adapters =
      adapters::inject_as_stored(model, options ? *options : options_from(files.config), name, max_elements_for(files.tensors));
  try {
    require_described_model(adapters, files.config);
    load_adapter_tensors(adapters, files.tensors);
  } catch (...) {
    remove_adapter(model, name);
    set_active_adapters(model, active_before);
    throw;
  }
  warn_unless_in_few_bits(adapters);
  return adapters;
}

void save_adapter(const AdapterSet& adapters, const Path& directory) {
  io::write_adapter_files(directory, adapter_to_files(adapters));
}

AdapterSet load_adapter(torch::nn::Module& model, const Path& directory, const std::string& name,
                        const std::optional<MethodOptions>& options) {
  const io::AdapterFiles files = io::read_adapter_files(directory);
  const auto of_directory = [&](const std::exception& error) {
    return fmt::format("{} (the adapter in {})", error.what(), directory.string());
  };
  try {
    return adapter_from_files(model, files, name, options);
  } catch (const FormatError& error) {
    throw FormatError(of_directory(error));
  } catch (const ShapeError& error) {
    throw ShapeError(of_directory(error));
  } catch (const NonFiniteError& error) {
    throw NonFiniteError(of_directory(error));
  }
}

}  // namespace lora
