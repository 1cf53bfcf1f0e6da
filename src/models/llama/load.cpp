#include "lora/models/llama/load.h"

#include <ATen/ATen.h>

#include <array>
#include <functional>
#include <map>
#include <set>

#include "core/check.h"
#include "formats/json.h"
#include "lora/core/file.h"
#include "lora/io/dtype.h"
#include "lora/io/model_files.h"

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

/// Everything is compared before any weight is allocated, so that a config that lies costs nothing.
void check_fit(const io::ModelFiles& files, const LlamaConfig& config) {
  std::vector<std::string> missing, misshapen, extra;
  std::set<std::string> expected;
  for (const auto& [name, shape] : llama_weight_shapes(config)) {
    expected.insert(name);
    if (!files.contains(name)) {
      missing.push_back(name);
    } else if (files.entry(name).shape != shape) {
      misshapen.push_back(fmt::format("{} [{}] instead of [{}]", name, fmt::join(files.entry(name).shape, ", "),
                                      fmt::join(shape, ", ")));
    }
  }
  for (const auto& name : files.names()) {
    if (!expected.contains(name) && !may_be_ignored(name, config)) extra.push_back(name);
  }
  if (missing.empty() && misshapen.empty() && extra.empty()) return;
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

}  // namespace

void offload_to_host(LlamaForCausalLMImpl& model, const at::Device& device) {
  if (device.is_cpu()) return;
  const auto stream = std::make_shared<nn::WeightStream>(device);
  for_each_product(model, [&](size_t layer, const std::string&, nn::LinearImpl& linear) {
    linear.restore_weight();
    const Tensor host = linear.weight.detach().to(at::kCPU).pin_memory();
    linear.stream_weight(stream, layer, nn::WeightStream::from_host(host));
  });
  model.to(device);
}

std::shared_ptr<LlamaForCausalLMImpl> load(const Path& directory, const LoadOptions& options) {
  LlamaConfig config = read_llama_config(directory);
  const auto files = std::make_shared<const io::ModelFiles>(directory);
  check_fit(*files, config);
  const auto dtype = options.dtype.value_or(io::to_torch(config.dtype, "config.json"));
  config.dtype = io::from_torch(dtype);

  const bool is_meta = options.device.is_meta();  // shapes alone: nothing to stream
  const bool on_disk = options.offload == nn::Offload::kDisk && !is_meta, on_host = options.offload == nn::Offload::kCpu && !is_meta;
  auto model = std::make_shared<LlamaForCausalLMImpl>(
      config, nn::ParameterOptions{dtype, on_host ? at::Device(at::kCPU) : options.device, false, !on_disk});
  if (is_meta) return model;
  const torch::NoGradGuard no_grad;
  auto parameters = model->named_parameters();
  if (on_disk) stream_from_files(*model, options.device, files);
  std::set<const at::TensorImpl*> elsewhere;
  for_each_product(*model, [&](size_t, const std::string&, const nn::LinearImpl& linear) {
    if (linear.weight_is_streamed()) elsewhere.insert(linear.weight.unsafeGetTensorImpl());
  });
  for (const auto& [name, shape] : llama_weight_shapes(config)) {
    if (!elsewhere.contains(parameters[name].unsafeGetTensorImpl())) files->read_into(name, parameters[name]);
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
  if (options.dtype) config.dtype = *options.dtype;
  std::vector<io::TensorSource> tensors;
  for (const auto& [name, shape] : llama_weight_shapes(config)) {
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
