#include "lora/models/glm/architecture.h"

#include "lora/io/dtype.h"
#include "lora/models/glm/load.h"
#include "lora/models/glm/shapes.h"

namespace lora::glm {
namespace {

ChatGlmForConditionalGenerationImpl& as_glm(nn::CausalLMImpl& model) {
  return dynamic_cast<ChatGlmForConditionalGenerationImpl&>(model);
}

std::vector<std::string> loaded_fields() {
  auto names = glm_loaded_fields();
  names.emplace_back("tie_word_embeddings");
  return names;
}

std::shared_ptr<nn::CausalLMImpl> make(const models::FreshModel& fresh) {
  GlmConfig config = fresh_glm_config(fresh.preset, fresh.fields);
  config.dtype = io::from_torch(fresh.parameters.dtype);
  return std::make_shared<ChatGlmForConditionalGenerationImpl>(config, fresh.parameters);
}

}  // namespace

models::Architecture architecture() {
  return {.name = "glm",
          .model_type = "chatglm",
          .load = [](const Path& directory, const LoadOptions& options) { return load(directory, options); },
          .make = make,
          .save = [](nn::CausalLMImpl& model, const Path& directory,
                     const SaveOptions& options) { save(as_glm(model), directory, options); },
          .convert = [](const Path& from, const Path& directory,
                        const SaveOptions& options) { convert_hf(from, directory, options); },
          .offload_to_host = [](nn::CausalLMImpl& model, const at::Device& device) { offload_to_host(as_glm(model), device); },
          .loaded_fields = loaded_fields(),
          .shapes = [](nn::CausalLMImpl& model) { return shapes_of(as_glm(model)); }};
}

}  // namespace lora::glm
