#include "lora/models/glm/load.h"

#include "formats/json.h"
#include "lora/core/file.h"
#include "lora/io/dtype.h"

namespace lora::glm {
namespace {

nn::ModelLayout layout_of(const GlmConfig& config) {
  nn::ModelLayout layout{.weights = glm_weight_shapes(config), .dtype = config.dtype, .quantization = config.quantization};
  // The published checkpoint carries what every model can compute, and a head that is the embeddings' equal.
  layout.may_be_ignored = [is_tied = config.tie_word_embeddings](const std::string& name) {
    return name.ends_with("rotary_emb.inv_freq") || (name == "lm_head.weight" && is_tied);
  };
  return layout;
}

nn::LayerList layers_of(ChatGlmForConditionalGenerationImpl& model) { return {model.transformer->layers, "transformer.layers"}; }

}  // namespace

std::shared_ptr<ChatGlmForConditionalGenerationImpl> load(const Path& directory, const LoadOptions& options) {
  GlmConfig config = read_glm_config(directory);
  const nn::ModelWeights weights(directory, layout_of(config), options);
  config.dtype = io::from_torch(weights.dtype());
  config.quantization = std::nullopt;  // the layers know
  auto model = std::make_shared<ChatGlmForConditionalGenerationImpl>(config, weights.parameters());
  weights.fill(*model, layers_of(*model));
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
  write_file_atomically(directory / "config.json", write_glm_config(config));
  const formats::Json generation = {{"bos_token_id", config.bos_token_id},
                                    {"eos_token_id", config.eos_token_id},
                                    {"pad_token_id", config.pad_token_id ? formats::Json(*config.pad_token_id) : formats::Json()}};
  write_file_atomically(directory / "generation_config.json", generation.dump(2) + "\n");
  if (options.copy_tokenizer_from) nn::copy_tokenizer_files(*options.copy_tokenizer_from, directory, data::kGlmTokenizerFile);
}

}  // namespace lora::glm
