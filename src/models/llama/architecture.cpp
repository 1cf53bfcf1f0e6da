#include "lora/models/llama/architecture.h"

#include "lora/io/dtype.h"
#include "lora/models/llama/load.h"
#include "lora/models/llama/shapes.h"

namespace lora::llama {
namespace {

LlamaForCausalLMImpl& as_llama(nn::CausalLMImpl& model) { return dynamic_cast<LlamaForCausalLMImpl&>(model); }

std::shared_ptr<nn::CausalLMImpl> make(const models::FreshModel& fresh) {
  LlamaConfig config = fresh_llama_config(fresh.preset, fresh.fields);
  config.dtype = io::from_torch(fresh.parameters.dtype);
  return std::make_shared<LlamaForCausalLMImpl>(config, fresh.parameters);
}

}  // namespace

models::Architecture architecture() {
  return {.name = "llama",
          .load = [](const Path& directory, const LoadOptions& options) { return load(directory, options); },
          .make = make,
          .save = [](nn::CausalLMImpl& model, const Path& directory, const SaveOptions& options) { save(as_llama(model), directory, options); },
          .offload_to_host = [](nn::CausalLMImpl& model, const at::Device& device) { offload_to_host(as_llama(model), device); },
          .shapes = [](nn::CausalLMImpl& model) { return shapes_of(as_llama(model)); }};
}

}  // namespace lora::llama
