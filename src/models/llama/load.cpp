#include "lora/models/llama/load.h"

#include "core/check.h"
#include "lora/core/file.h"
#include "lora/io/dtype.h"
#include "models/llama/layout.h"

namespace lora::llama {
namespace {

nn::LayerList layers_of(LlamaForCausalLMImpl& model) { return {model.model->layers, "model.layers"}; }

}  // namespace

void offload_to_host(LlamaForCausalLMImpl& model, const at::Device& device) {
  nn::offload_to_host(model, layers_of(model), device);
}

std::shared_ptr<LlamaForCausalLMImpl> load(const Path& directory, const LoadOptions& options) {
  LlamaConfig config = read_stored_config(directory);
  auto fields = options.fields;
  const bool is_untied = nn::take_untied_head(fields, config.tie_word_embeddings);
  for (const auto& [key, text] : fields) {
    fail<ConfigError>("[model.{}] over a loaded Llama only tie_word_embeddings can be set; found {}; leave it out", key, text);
  }
  const nn::ModelWeights weights(directory, layout_of(config), options);
  config.dtype = io::from_torch(weights.dtype());
  config.quantization = std::nullopt;  // the layers know
  auto model = std::make_shared<LlamaForCausalLMImpl>(config, weights.parameters());
  weights.fill(*model, layers_of(*model));
  if (is_untied) model->untie_head();
  model->generation_end_ids = nn::generation_end_ids(directory, config.vocab_size);
  return model;
}

std::shared_ptr<const data::Tokenizer> load_tokenizer(const Path& directory) {
  return data::load_sentencepiece(directory / "tokenizer.model");
}

void save(LlamaForCausalLMImpl& model, const Path& directory, const SaveOptions& options) {
  LlamaConfig config = model.config;
  const nn::ModelLayout saved = nn::save_weights(model, layers_of(model), layout_of(config), directory, options);
  config.dtype = saved.dtype;
  config.quantization = saved.quantization;
  write_file_atomically(directory / "config.json", write_llama_config(config));
  write_file_atomically(directory / "generation_config.json", write_generation_config(config));
  if (options.copy_tokenizer_from) copy_tokenizer_files(*options.copy_tokenizer_from, directory);
}

void copy_tokenizer_files(const Path& from, const Path& to_directory) { nn::copy_tokenizer_files(from, to_directory); }

}  // namespace lora::llama
