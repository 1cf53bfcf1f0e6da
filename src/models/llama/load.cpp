#include "lora/models/llama/load.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <functional>
#include <map>
#include <set>

#include "core/check.h"
#include "formats/json.h"
#include "lora/core/file.h"
#include "lora/io/dtype.h"
#include "lora/io/model_files.h"
#include "lora/io/quantized.h"
#include "lora/ops/quantized.h"

namespace lora::llama {
namespace {

constexpr std::array kTokenizerFiles = {"tokenizer.model", "tokenizer.json", "tokenizer_config.json",
                                        "special_tokens_map.json", "added_tokens.json"};
constexpr size_t kNamesShown = 5;

std::string first_names(const std::vector<std::string>& names) {
  const size_t shown = std::min(names.size(), kNamesShown);
  std::string text = fmt::format("{}", fmt::join(names.begin(), names.begin() + static_cast<std::ptrdiff_t>(shown), ", "));
  if (names.size() > shown) text += fmt::format(" and {} more", names.size() - shown);
  return text;
}

/// Old checkpoints carry what every model can compute; a tied head may be stored besides.
bool may_be_ignored(const std::string& name, const LlamaConfig& config) {
  return name.ends_with("rotary_emb.inv_freq") || (name == "lm_head.weight" && config.tie_word_embeddings);
}

/// What stands in the files under each name.
using StoredWeights = std::map<std::string, io::StoredWeight>;

/// Everything is compared before any weight is allocated, so that a config that lies costs nothing.
StoredWeights check_fit(const io::ModelFiles& files, const LlamaConfig& config) {
  StoredWeights stored;
  std::vector<std::string> missing, misshapen, extra;
  std::set<std::string> expected;
  for (const auto& [name, shape] : llama_weight_shapes(config)) {
    expected.insert(name);
    if (!files.contains(name)) {
      missing.push_back(name);
      continue;
    }
    for (auto& companion : io::companions_of(files, name)) expected.insert(std::move(companion));
    const auto& weight = stored.emplace(name, io::stored_weight(files, name)).first->second;
    if (weight.shape != shape) {
      misshapen.push_back(fmt::format("{} [{}] instead of [{}]", name, fmt::join(weight.shape, ", "), fmt::join(shape, ", ")));
    }
  }
  for (const auto& name : files.names()) {
    if (!expected.contains(name) && !may_be_ignored(name, config)) extra.push_back(name);
  }
  if (missing.empty() && misshapen.empty() && extra.empty()) return stored;
  std::vector<std::string> problems;
  if (!missing.empty()) problems.push_back("missing: " + first_names(missing));
  if (!misshapen.empty()) problems.push_back("wrong shape: " + first_names(misshapen));
  if (!extra.empty()) problems.push_back("unknown: " + first_names(extra));
  fail<ShapeError>("[model] the weights in {} must be those that its config.json describes; {}",
                   files.directory().string(), fmt::join(problems, "; "));
}

/// visit(layer's number, name of the weight, layer) for every product of every layer.
template <class Visit>
void for_each_product(LlamaForCausalLMImpl& model, Visit visit) {
  for (size_t i = 0; i < model.model->layers->size(); ++i) {
    const auto prefix = fmt::format("model.layers.{}", i);
    for (const auto& module : model.model->layers[i]->named_modules(prefix)) {
      if (auto* linear = module.value()->as<nn::LinearImpl>()) visit(i, module.key() + ".weight", *linear);
    }
  }
}

void stream_from_files(LlamaForCausalLMImpl& model, const at::Device& device, std::shared_ptr<const io::ModelFiles> files) {
  const auto stream = std::make_shared<nn::WeightStream>(device);
  for_each_product(model, [&](size_t layer, const std::string& name, nn::LinearImpl& linear) {
    linear.stream_weight(stream, layer, nn::WeightStream::from_files(files, name));
  });
}

[[noreturn]] void refuse_to_stream() {
  fail<ConfigError>("[model.offload] weights in few bits are held, not streamed; found both; use none");
}

std::string text_of(const QuantizationScheme& scheme) {
  if (scheme.type == QuantizedType::kInt8) return "int8";
  return fmt::format("{} in blocks of {}{}", name_of(scheme.type), scheme.block_size, scheme.double_quantized ? ", double" : "");
}

/// In which form each weight of the layers is kept; nothing: plain.
class KeptForms {
 public:
  KeptForms(const StoredWeights& stored, const LlamaConfig& config, const std::optional<QuantizationScheme>& wanted)
      : stored_(stored), config_(config), wanted_(wanted) {
    if (config.quantization && wanted) require_same(config.quantization->type, config.quantization->double_quantized);
    for (const auto& [name, weight] : stored) {
      if (weight.scheme && wanted) require<ConfigError>(*weight.scheme == *wanted, "{}", contradiction(text_of(*weight.scheme)));
    }
  }

  std::optional<QuantizationScheme> of(const std::string& name) const {
    const io::StoredWeight& weight = stored_.at(name);
    if (weight.scheme || !config_.quantization) return weight.scheme ? weight.scheme : wanted_;
    const std::string_view module = std::string_view(name).substr(0, name.size() - std::string_view(".weight").size());
    if (config_.quantization->skips(module)) return std::nullopt;
    return config_.quantization->scheme();
  }

 private:
  void require_same(QuantizedType type, bool double_quantized) const {
    QuantizationScheme stored = *wanted_;
    stored.type = type;
    stored.double_quantized = double_quantized;
    require<ConfigError>(stored == *wanted_, "{}", contradiction(text_of(stored)));
  }
  std::string contradiction(const std::string& stored) const {
    return fmt::format("[model] a checkpoint in few bits stays as it is, {}; found a wish for {}; leave adapter.quantization out",
                       stored, text_of(*wanted_));
  }

  const StoredWeights& stored_;
  const LlamaConfig& config_;
  const std::optional<QuantizationScheme>& wanted_;
};

/// A weight's numbers in a type, on the CPU.
Tensor read_plain(const io::ModelFiles& files, const std::string& name, const io::StoredWeight& stored, at::ScalarType dtype) {
  if (stored.scheme) return ops::QuantizedTensor(io::read_quantized(files, name)).dequantize(dtype);
  Tensor weight = at::empty(stored.shape, dtype);
  files.read_into(name, weight);
  return weight;
}

ops::QuantizedTensor read_bits(const io::ModelFiles& files, const std::string& name, const io::StoredWeight& stored,
                               const QuantizationScheme& scheme, at::ScalarType dtype) {
  if (stored.scheme) return ops::QuantizedTensor(io::read_quantized(files, name));
  return ops::QuantizedTensor::quantize(read_plain(files, name, stored, dtype), scheme);
}

/// A layer's weight in few bits, or (without a scheme) in memory of its own; on the meta device the form alone.
void fill_layer(nn::LinearImpl& layer, const std::optional<QuantizationScheme>& scheme, const io::ModelFiles& files,
                const std::string& name, const io::StoredWeight& stored) {
  const auto dtype = layer.weight.scalar_type();
  if (layer.weight.is_meta()) {
    if (scheme) layer.quantize_weight(ops::QuantizedTensor::quantize(at::empty(stored.shape, layer.weight.options()), *scheme));
  } else if (scheme) {
    layer.quantize_weight(read_bits(files, name, stored, *scheme, dtype));
  } else {
    layer.weight.set_data(at::empty(stored.shape, layer.weight.options()));
    files.read_into(name, layer.weight);
  }
}

/// The form of a model's file that keeps few bits. Products with plain weights are named, and the head is as always.
formats::QuantizationConfig stored_form(LlamaForCausalLMImpl& model) {
  std::optional<QuantizationScheme> scheme;
  std::vector<std::string> plain = {"lm_head"};
  for_each_product(model, [&](size_t, const std::string& name, nn::LinearImpl& linear) {
    if (!linear.weight_is_quantized()) {
      plain.push_back(name.substr(0, name.size() - std::string_view(".weight").size()));
      return;
    }
    const auto& own = linear.quantized_weight()->scheme();
    require<ConfigError>(!scheme || *scheme == own, "[model] a checkpoint has weights of one scheme; found {} and {}; save them plain",
                         text_of(scheme.value_or(own)), text_of(own));
    scheme = own;
  });
  require<ConfigError>(scheme.has_value(), "[model] a checkpoint in few bits needs weights in few bits; found none; save them plain");
  formats::QuantizationConfig config;
  config.bits = bits_of(scheme->type);
  config.type = scheme->type;
  config.double_quantized = scheme->double_quantized;
  config.compute_dtype = model.config.dtype;
  if (plain.size() > 1) config.skip_modules = plain;
  return config;
}

}  // namespace

void offload_to_host(LlamaForCausalLMImpl& model, const at::Device& device) {
  if (device.is_cpu()) return;
  const auto stream = std::make_shared<nn::WeightStream>(device);
  for_each_product(model, [&](size_t layer, const std::string&, nn::LinearImpl& linear) {
    if (linear.weight_is_quantized()) refuse_to_stream();
    linear.restore_weight();
    const Tensor host = linear.weight.detach().to(at::kCPU).pin_memory();
    linear.stream_weight(stream, layer, nn::WeightStream::from_host(host));
  });
  model.to(device);
}

std::shared_ptr<LlamaForCausalLMImpl> load(const Path& directory, const LoadOptions& options) {
  LlamaConfig config = read_llama_config(directory);
  const auto files = std::make_shared<const io::ModelFiles>(directory);
  const StoredWeights stored = check_fit(*files, config);
  const KeptForms forms(stored, config, options.quantization);
  const bool in_few_bits = config.quantization || options.quantization || std::any_of(stored.begin(), stored.end(), [](const auto& entry) {
                             return entry.second.scheme.has_value();
                           });
  const auto dtype = options.dtype.value_or(io::to_torch(config.dtype, "config.json"));
  LlamaConfig plain_config = config;
  plain_config.dtype = io::from_torch(dtype);
  plain_config.quantization = std::nullopt;  // the layers know

  const bool is_meta = options.device.is_meta();  // shapes alone: nothing to stream
  const bool on_disk = options.offload == nn::Offload::kDisk && !is_meta, on_host = options.offload == nn::Offload::kCpu && !is_meta;
  if (in_few_bits && (on_disk || (on_host && !options.device.is_cpu()))) refuse_to_stream();
  auto model = std::make_shared<LlamaForCausalLMImpl>(
      plain_config, nn::ParameterOptions{dtype, on_host ? at::Device(at::kCPU) : options.device, false, !on_disk && !in_few_bits});
  if (is_meta && !in_few_bits) return model;
  const torch::NoGradGuard no_grad;
  auto parameters = model->named_parameters();
  if (on_disk) stream_from_files(*model, options.device, files);
  std::set<std::string> elsewhere;
  for_each_product(*model, [&](size_t, const std::string& name, nn::LinearImpl& linear) {
    if (!on_disk && !in_few_bits) return;
    if (in_few_bits) fill_layer(linear, forms.of(name), *files, name, stored.at(name));
    elsewhere.insert(name);
  });
  if (is_meta) return model;
  for (const auto& [name, shape] : llama_weight_shapes(config)) {
    if (elsewhere.contains(name)) continue;
    if (stored.at(name).scheme) {
      parameters[name].copy_(read_plain(*files, name, stored.at(name), dtype));
    } else {
      files->read_into(name, parameters[name]);
    }
  }
  if (on_host) offload_to_host(*model, options.device);
  return model;
}

std::shared_ptr<const data::Tokenizer> load_tokenizer(const Path& directory) {
  return data::load_sentencepiece(directory / "tokenizer.model");
}

void save(LlamaForCausalLMImpl& model, const Path& directory, const SaveOptions& options) {
  LlamaConfig config = model.config;
  std::map<std::string, std::function<Tensor()>> readers;
  for (auto& parameter : nn::readable_parameters(model)) readers.emplace(parameter.name, std::move(parameter.read));
  std::map<std::string, std::shared_ptr<const ops::QuantizedTensor>> in_few_bits;
  if (options.quantized) {
    config.quantization = stored_form(model);
    for_each_product(model, [&](size_t, const std::string& name, const nn::LinearImpl& linear) {
      if (linear.weight_is_quantized()) in_few_bits.emplace(name, linear.quantized_weight());
    });
  }
  if (options.dtype) config.dtype = *options.dtype;
  std::vector<io::TensorSource> tensors;
  for (const auto& [name, shape] : llama_weight_shapes(config)) {
    if (const auto bits = in_few_bits.find(name); bits != in_few_bits.end()) {
      for (auto& source : io::quantized_sources(name, bits->second->parts())) tensors.push_back(std::move(source));
      continue;
    }
    tensors.push_back({name, config.dtype, shape, [read = readers.at(name)] { return read().detach(); }});
  }
  io::save_model_files(directory, tensors, options.shard_bytes);
  write_file_atomically(directory / "config.json", write_llama_config(config));
  const formats::Json generation = {
      {"bos_token_id", config.bos_token_id},
      {"eos_token_id", config.eos_token_ids.size() == 1 ? formats::Json(config.eos_token_ids[0])
                                                        : formats::Json(config.eos_token_ids)},
      {"pad_token_id", config.pad_token_id ? formats::Json(*config.pad_token_id) : formats::Json()}};
  write_file_atomically(directory / "generation_config.json", generation.dump(2) + "\n");
  if (options.copy_tokenizer_from) copy_tokenizer_files(*options.copy_tokenizer_from, directory);
}

void copy_tokenizer_files(const Path& from, const Path& to_directory) {
  if (std::filesystem::is_regular_file(from)) {
    write_file_atomically(to_directory / "tokenizer.model", read_file(from));
    return;
  }
  for (const char* name : kTokenizerFiles) {
    if (std::filesystem::exists(from / name)) write_file_atomically(to_directory / name, read_file(from / name));
  }
}

}  // namespace lora::llama
