#include "lora/nn/model_weights.h"

#include <ATen/ATen.h>
#include <torch/utils.h>

#include <algorithm>
#include <array>
#include <set>
#include <string_view>
#include <system_error>

#include "core/check.h"
#include "formats/json.h"
#include "formats/model_fields.h"
#include "io/weight_files.h"
#include "lora/core/file.h"
#include "lora/core/log.h"
#include "lora/io/dtype.h"
#include "lora/nn/linear.h"
#include "lora/ops/quantized.h"

namespace lora::nn {
namespace {

constexpr std::array kTokenizerFiles = {"tokenizer.model",       "ice_text.model",          "tokenizer.json",
                                        "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                                        "chat_template.jinja",   "chat_template.json"};
constexpr size_t kNamesShown = 5;

std::string first_names(const std::vector<std::string>& names) {
  const size_t shown = std::min(names.size(), kNamesShown);
  std::string text = fmt::format("{}", fmt::join(names.begin(), names.begin() + static_cast<std::ptrdiff_t>(shown), ", "));
  if (names.size() > shown) text += fmt::format(" and {} more", names.size() - shown);
  return text;
}

/// What stands in the files under each name.
using StoredWeights = std::map<std::string, io::StoredWeight>;

StoredWeights check_fit(const io::ModelFiles& files, const ModelLayout& layout) {
  StoredWeights stored;
  std::vector<std::string> missing, misshapen, extra;
  std::set<std::string> expected;
  for (const auto& [name, shape, wide] : layout.weights) {
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
    if (!expected.contains(name) && !layout.may_be_ignored(name)) extra.push_back(name);
  }
  if (missing.empty() && misshapen.empty() && extra.empty()) return stored;
  std::vector<std::string> problems;
  if (!missing.empty()) problems.push_back("missing: " + first_names(missing));
  if (!misshapen.empty()) problems.push_back("wrong shape: " + first_names(misshapen));
  if (!extra.empty()) problems.push_back("unknown: " + first_names(extra));
  const bool has_prefix = std::ranges::any_of(extra, [](const auto& name) { return name.find(".prefix_encoder.") != name.npos; });
  if (has_prefix) problems.push_back("a prefix (P-tuning v2) is read as an adapter, prompt_embeddings in a PEFT directory of its own");
  fail<ShapeError>("[model] the weights in {} must be those that its config.json describes; {}", files.directory().string(),
                   fmt::join(problems, "; "));
}

/// A model of shapes alone needs none: then null.
std::shared_ptr<const io::ModelFiles> open_files(const Path& directory, const at::Device& device) {
  std::error_code error;
  if (device.is_meta() && std::filesystem::is_directory(directory, error) && !io::has_weight_files(directory)) return nullptr;
  return std::make_shared<const io::ModelFiles>(directory);
}

/// What files with these weights would hold.
StoredWeights described(const ModelLayout& layout) {
  StoredWeights stored;
  for (const auto& [name, shape, wide] : layout.weights)
    stored[name] = {.shape = shape, .dtype = layout.dtype, .scheme = std::nullopt};
  return stored;
}

/// visit(layer's number, name of the weight, layer) for every product of every layer.
template <class Visit>
void for_each_product(const LayerList& layers, Visit visit) {
  for (size_t i = 0; i < layers.modules->size(); ++i) {
    for (const auto& module : layers.modules->ptr(i)->named_modules(fmt::format("{}.{}", layers.path, i))) {
      if (auto* linear = module.value()->as<LinearImpl>()) visit(i, module.key() + ".weight", *linear);
    }
  }
}

std::string_view module_of(std::string_view weight) {
  return weight.substr(0, weight.size() - std::string_view(".weight").size());
}

[[noreturn]] void refuse_to_stream() {
  fail<ConfigError>("[model.offload] weights in few bits are held, not streamed; found both; use none");
}

std::string text_of(const QuantizationScheme& scheme) {
  if (scheme.type == QuantizedType::kInt8) return "int8";
  return fmt::format("{} in blocks of {}{}", name_of(scheme.type), scheme.block_size, scheme.double_quantized ? ", double" : "");
}

/// Weights that are stored in few bits must be in those that somebody wants.
void check_wish(const StoredWeights& stored, const ModelLayout& layout, const std::optional<QuantizationScheme>& wanted) {
  if (!wanted) return;
  const auto require_same = [&](const QuantizationScheme& scheme) {
    require<ConfigError>(
        scheme == *wanted,
        "[model] a checkpoint in few bits stays as it is, {}; found a wish for {}; leave adapter.quantization out",
        text_of(scheme), text_of(*wanted));
  };
  if (layout.quantization) {
    QuantizationScheme scheme = *wanted;
    scheme.type = layout.quantization->type;
    scheme.double_quantized = layout.quantization->double_quantized;
    require_same(scheme);
  }
  for (const auto& [name, weight] : stored) {
    if (weight.scheme) require_same(*weight.scheme);
  }
}

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

/// The form alone, on the meta device.
void shape_layer(LinearImpl& layer, const std::optional<QuantizationScheme>& scheme, const io::StoredWeight& stored) {
  if (scheme) layer.quantize_weight(ops::QuantizedTensor::quantize(at::empty(stored.shape, layer.weight.options()), *scheme));
}

/// A layer's weight in few bits, or (without a scheme) in memory of its own.
void fill_layer(LinearImpl& layer, const std::optional<QuantizationScheme>& scheme, const io::ModelFiles& files,
                const std::string& name, const io::StoredWeight& stored) {
  const auto dtype = layer.weight.scalar_type();
  if (scheme) {
    layer.quantize_weight(read_bits(files, name, stored, *scheme, dtype));
  } else {
    layer.weight.set_data(at::empty(stored.shape, layer.weight.options()));
    files.read_into(name, layer.weight);
  }
}

/// The form of a model's file that keeps few bits. Products with plain weights are named, and the head is as always.
formats::QuantizationConfig stored_form(const LayerList& layers, DType dtype) {
  std::optional<QuantizationScheme> scheme;
  std::vector<std::string> plain = {"lm_head"};
  for_each_product(layers, [&](size_t, const std::string& name, LinearImpl& linear) {
    if (!linear.weight_is_quantized()) {
      plain.emplace_back(module_of(name));
      return;
    }
    const auto& own = linear.quantized_weight()->scheme();
    require<ConfigError>(!scheme || *scheme == own,
                         "[model] a checkpoint has weights of one scheme; found {} and {}; save them plain",
                         text_of(scheme.value_or(own)), text_of(own));
    scheme = own;
  });
  require<ConfigError>(scheme.has_value(),
                       "[model] a checkpoint in few bits needs weights in few bits; found none; save them plain");
  formats::QuantizationConfig config;
  config.bits = bits_of(scheme->type);
  config.type = scheme->type;
  config.double_quantized = scheme->double_quantized;
  config.compute_dtype = dtype;
  if (plain.size() > 1) config.skip_modules = plain;
  return config;
}

bool is_half(DType dtype) { return dtype == DType::kF16 || dtype == DType::kBF16; }

DType written_dtype(const WeightShape& weight, DType dtype) { return weight.wide && is_half(dtype) ? DType::kF32 : dtype; }

bool holds_other_head(const Path& directory, const std::string& embedding, const std::string& head) {
  if (!io::has_weight_files(directory)) return false;
  const io::ModelFiles files(directory);
  if (!files.contains(embedding) || !files.contains(head)) return false;
  const auto table = io::stored_weight(files, embedding), other = io::stored_weight(files, head);
  if (table.scheme || other.scheme || table.shape != other.shape) return table.shape != other.shape;
  const Tensor first = at::empty(table.shape, at::kFloat), second = at::empty(other.shape, at::kFloat);
  files.read_into(embedding, first);
  files.read_into(head, second);
  return !first.equal(second);
}

}  // namespace

std::function<bool(const std::string&)> computed_weights(bool head_is_tied) {
  return [head_is_tied](const std::string& name) {
    return name.ends_with("rotary_emb.inv_freq") || (head_is_tied && name == "lm_head.weight");
  };
}

bool take_untied_head(std::vector<std::pair<std::string, std::string>>& fields, bool is_tied) {
  const auto field = std::ranges::find(fields, "tie_word_embeddings", &std::pair<std::string, std::string>::first);
  if (field == fields.end()) return false;
  const bool tied = field->second == "true";
  require<ConfigError>(!tied || is_tied,
                       "[model.tie_word_embeddings] a loaded head of its own cannot be tied; found true; leave the key out");
  fields.erase(field);
  return is_tied && !tied;
}

std::optional<std::vector<int64_t>> generation_end_ids(const Path& directory, int64_t vocab_size) {
  constexpr uint64_t kMostBytes = 16 << 20;
  const Path file = directory / "generation_config.json";
  std::error_code error;
  if (!std::filesystem::is_regular_file(file, error)) return std::nullopt;
  const formats::Json json = formats::parse_json(read_file(file, kMostBytes), file.string());
  const formats::Fields fields(json, file.string());
  if (!fields.has("eos_token_id")) return std::nullopt;
  std::vector<int64_t> ids;
  fields.integers("eos_token_id", ids);
  for (const int64_t id : ids) {
    require<FormatError>(id >= 0 && id < vocab_size, "[{}] eos_token_id must be below vocab_size, {}; found {}", file.string(),
                         vocab_size, id);
  }
  return ids;
}

bool stores_other_head(const Path& directory, const std::string& embedding, const std::string& head) {
  if (!holds_other_head(directory, embedding, head)) return false;
  log::warn(fmt::format("[model] config.json in {} says that the head is the embeddings' table; found another {}, which stands",
                        directory.string(), head));
  return true;
}

ModelWeights::ModelWeights(const Path& directory, ModelLayout layout, const LoadOptions& options)
    : layout_(std::move(layout)),
      options_(options),
      dtype_(options.dtype.value_or(io::to_torch(layout_.dtype, "config.json"))),
      files_(open_files(directory, options.device)),
      stored_(files_ ? check_fit(*files_, layout_) : described(layout_)) {
  check_wish(stored_, layout_, options_.quantization);
  in_few_bits_ = layout_.quantization || options_.quantization ||
                 std::any_of(stored_.begin(), stored_.end(), [](const auto& entry) { return entry.second.scheme.has_value(); });
  if (in_few_bits_ && (on_disk() || (on_host() && !options_.device.is_cpu()))) refuse_to_stream();
}

// Shapes alone have nothing to stream.
bool ModelWeights::on_disk() const { return options_.offload == Offload::kDisk && !options_.device.is_meta(); }
bool ModelWeights::on_host() const { return options_.offload == Offload::kCpu && !options_.device.is_meta(); }

ParameterOptions ModelWeights::parameters() const {
  return {dtype_, on_host() ? at::Device(at::kCPU) : options_.device, /*initialize=*/false,
          /*allocate=*/!on_disk() && !in_few_bits_};
}

/// In which form a weight of the layers is kept; nothing: plain.
std::optional<QuantizationScheme> ModelWeights::form_of(const std::string& name) const {
  const io::StoredWeight& weight = stored_.at(name);
  if (weight.scheme || !layout_.quantization) return weight.scheme ? weight.scheme : options_.quantization;
  if (layout_.quantization->skips(module_of(name))) return std::nullopt;
  return layout_.quantization->scheme();
}

/// Streams them, or puts them into few bits.
void ModelWeights::fill_layers(const LayerList& layers) const {
  const auto stream = on_disk() ? std::make_shared<WeightStream>(options_.device) : nullptr;
  for_each_product(layers, [&](size_t layer, const std::string& name, LinearImpl& linear) {
    if (stream) {
      linear.stream_weight(stream, layer, WeightStream::from_files(files_, name));
    } else if (options_.device.is_meta()) {
      shape_layer(linear, form_of(name), stored_.at(name));
    } else {
      fill_layer(linear, form_of(name), *files_, name, stored_.at(name));
    }
  });
}

void ModelWeights::fill(torch::nn::Module& model, const LayerList& layers) const {
  const torch::NoGradGuard no_grad;
  auto parameters = model.named_parameters();
  std::set<std::string> elsewhere;
  if (on_disk() || in_few_bits_) {
    fill_layers(layers);
    for_each_product(layers, [&](size_t, const std::string& name, LinearImpl&) { elsewhere.insert(name); });
  }
  if (options_.device.is_meta()) return;
  for (const auto& [name, shape, wide] : layout_.weights) {
    if (elsewhere.contains(name)) continue;
    if (stored_.at(name).scheme) {
      parameters[name].copy_(read_plain(*files_, name, stored_.at(name), parameters[name].scalar_type()));
    } else {
      files_->read_into(name, parameters[name]);
    }
  }
  if (on_host()) offload_to_host(model, layers, options_.device);
}

std::vector<io::TensorSource> ModelWeights::sources() const {
  std::vector<io::TensorSource> tensors;
  for (const auto& weight : layout_.weights) {
    const DType dtype = written_dtype(weight, io::from_torch(dtype_));
    tensors.push_back(
        {weight.name, dtype, weight.shape, [files = files_, name = weight.name, stored = stored_.at(weight.name), dtype] {
           return read_plain(*files, name, stored, io::to_torch(dtype, "config.json"));
         }});
  }
  return tensors;
}

void offload_to_host(torch::nn::Module& model, const LayerList& layers, const at::Device& device) {
  if (device.is_cpu()) return;
  const auto stream = std::make_shared<WeightStream>(device);
  for_each_product(layers, [&](size_t layer, const std::string&, LinearImpl& linear) {
    if (linear.weight_is_quantized()) refuse_to_stream();
    linear.restore_weight();
    const Tensor host = linear.weight.detach().to(at::kCPU).pin_memory();
    linear.stream_weight(stream, layer, WeightStream::from_host(host));
  });
  model.to(device);
}

ModelLayout save_weights(const torch::nn::Module& model, const LayerList& layers, ModelLayout layout, const Path& directory,
                         const SaveOptions& options) {
  std::map<std::string, std::function<Tensor()>> readers;
  for (auto& parameter : readable_parameters(model)) readers.emplace(parameter.name, std::move(parameter.read));
  std::map<std::string, std::shared_ptr<const ops::QuantizedTensor>> in_few_bits;
  if (options.quantized) {
    layout.quantization = stored_form(layers, layout.dtype);
    for_each_product(layers, [&](size_t, const std::string& name, const LinearImpl& linear) {
      if (linear.weight_is_quantized()) in_few_bits.emplace(name, linear.quantized_weight());
    });
  }
  if (options.dtype) layout.dtype = *options.dtype;
  std::vector<io::TensorSource> tensors;
  for (const auto& weight : layout.weights) {
    if (const auto bits = in_few_bits.find(weight.name); bits != in_few_bits.end()) {
      for (auto& source : io::quantized_sources(weight.name, bits->second->parts())) tensors.push_back(std::move(source));
      continue;
    }
    tensors.push_back({weight.name, written_dtype(weight, layout.dtype), weight.shape,
                       [read = readers.at(weight.name)] { return read().detach(); }});
  }
  io::save_model_files(directory, tensors, options.shard_bytes);
  return layout;
}

void copy_tokenizer_files(const Path& from, const Path& to_directory, const std::string& file_name) {
  if (std::filesystem::is_regular_file(from)) {
    write_file_atomically(to_directory / file_name, read_file(from));
    return;
  }
  for (const char* name : kTokenizerFiles) {
    if (std::filesystem::exists(from / name)) write_file_atomically(to_directory / name, read_file(from / name));
  }
}

}  // namespace lora::nn
