#include "lora/models/glm/load.h"

#include "formats/json.h"
#include "lora/core/file.h"
#include "lora/io/dtype.h"

namespace lora::glm {
namespace {

nn::ModelLayout layout_of(const GlmConfig& config) {
  return {.weights = glm_weight_shapes(config),
          .dtype = config.dtype,
          .quantization = config.quantization,
          .may_be_ignored = nn::computed_weights(config.tie_word_embeddings)};
}

/// config.json as its weights have it: a head that is stored beside the embeddings, and is not their table, is not tied.
GlmConfig read_stored_config(const Path& directory) {
  GlmConfig config = read_glm_config(directory);
  if (config.tie_word_embeddings && nn::stores_other_head(directory, "transformer.word_embeddings.weight", "lm_head.weight")) {
    config.tie_word_embeddings = false;
  }
  return config;
}

nn::LayerList layers_of(ChatGlmForConditionalGenerationImpl& model) { return {model.transformer->layers, "transformer.layers"}; }

/// The files beside the weights.
void write_companions(const GlmConfig& config, const Path& directory, const SaveOptions& options) {
  write_file_atomically(directory / "config.json", write_glm_config(config));
  const formats::Json generation = {
      {"bos_token_id", config.bos_token_id},
      {"eos_token_id", config.eos_token_id},
      {"pad_token_id", config.pad_token_id ? formats::Json(*config.pad_token_id) : formats::Json()}};
  write_file_atomically(directory / "generation_config.json", generation.dump(2) + "\n");
  if (options.copy_tokenizer_from) nn::copy_tokenizer_files(*options.copy_tokenizer_from, directory, data::kGlmTokenizerFile);
}

}  // namespace

std::shared_ptr<ChatGlmForConditionalGenerationImpl> load(const Path& directory, const LoadOptions& options) {
  GlmConfig config = read_stored_config(directory);
  auto fields = options.fields;
  const bool is_untied = nn::take_untied_head(fields, config.tie_word_embeddings);
  config = with_loaded_fields(std::move(config), fields);
  const nn::ModelWeights weights(directory, layout_of(config), options);
  config.dtype = io::from_torch(weights.dtype());
  config.quantization = std::nullopt;  // the layers know
  auto model = std::make_shared<ChatGlmForConditionalGenerationImpl>(config, weights.parameters());
  weights.fill(*model, layers_of(*model));
  if (is_untied) model->untie_head();
  model->generation_end_ids = nn::generation_end_ids(directory, config.vocab_size);
  return model;
}

std::shared_ptr<const data::GlmTokenizer> load_tokenizer(const Path& directory) {
  return data::load_glm_tokenizer(directory / data::kGlmTokenizerFile);
}

void offload_to_host(ChatGlmForConditionalGenerationImpl& model, const at::Device& device) {
  nn::offload_to_host(model, layers_of(model), device);
}

void save(ChatGlmForConditionalGenerationImpl& model, const Path& directory, const SaveOptions& options) {
  GlmConfig config = model.config;
  const nn::ModelLayout saved = nn::save_weights(model, layers_of(model), layout_of(config), directory, options);
  config.dtype = saved.dtype;
  config.quantization = saved.quantization;
  write_companions(config, directory, options);
}

void convert_hf(const Path& from, const Path& directory, const SaveOptions& options) {
  GlmConfig config = read_stored_config(from);
  config.dtype = options.dtype.value_or(config.dtype);
  const nn::ModelWeights weights(from, layout_of(config), {.dtype = io::to_torch(config.dtype, "config.json")});
  io::save_model_files(directory, weights.sources(), options.shard_bytes);
  config.quantization = std::nullopt;  // what was in few bits is written as the numbers that it stands for
  write_companions(config, directory, options);
}

}  // namespace lora::glm
