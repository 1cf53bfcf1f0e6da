#include "lora/adapters/adapter_io.h"

#include <ATen/ATen.h>
#include <torch/utils.h>

#include <algorithm>

#include "adapters/inject_as_stored.h"
#include "adapters/listing.h"
#include "adapters/mismatches.h"
#include "adapters/peft_names.h"
#include "adapters/plain_form.h"
#include "adapters/state.h"
#include "core/check.h"
#include "core/overloaded.h"
#include "lora/adapters/inject.h"
#include "lora/core/log.h"

namespace lora {
namespace {

using adapters::FileTensors;
using adapters::fits;
using adapters::kFilePrefix;
using adapters::Mismatches;
using adapters::Places;
using adapters::places_of;
using adapters::without;

constexpr std::string_view kBaseLayerWeight = ".base_layer.weight";

constexpr const char* kPromptEmbeddings = "prompt_embeddings";

/// The adapted layer whose frozen weight a file repeats under `name`; null for anything else.
const AdapterSet::Slot* base_copy_of(const AdapterSet& adapters, const std::string& name) {
  if (!name.ends_with(kBaseLayerWeight)) return nullptr;
  const auto path = std::string_view(name).substr(0, name.size() - kBaseLayerWeight.size());
  const auto& slots = adapters.slots();
  const auto found = std::ranges::find_if(slots, [&](const auto& slot) { return slot.path == path; });
  return found == slots.end() ? nullptr : &*found;
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
  adapters::put_plain_form(adapters, options, tensors);
  io::AdapterFiles files{.config = config_from(options), .tensors = {}};
  describe_model(adapters, files.config);
  const std::string prefix = std::holds_alternative<BottleneckOptions>(options) ? "" : std::string(kFilePrefix);
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
    const std::string name = adapters::place_name(file_name, adapters.name(), places);
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
