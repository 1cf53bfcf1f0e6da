#include "lora/models/llama/architecture.h"

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "lora/io/dtype.h"
#include "lora/models/llama/convert.h"
#include "lora/models/llama/load.h"
#include "lora/models/llama/shapes.h"

namespace lora::llama {
namespace {

LlamaForCausalLMImpl& as_llama(nn::CausalLMImpl& model) { return dynamic_cast<LlamaForCausalLMImpl&>(model); }

std::shared_ptr<nn::CausalLMImpl> make(LlamaConfig config, const models::FreshModel& fresh) {
  check_llama_config(config, "model");
  config.dtype = io::from_torch(fresh.parameters.dtype);
  return std::make_shared<LlamaForCausalLMImpl>(config, fresh.parameters);
}

std::shared_ptr<nn::CausalLMImpl> make_llama(const models::FreshModel& fresh) {
  const LlamaConfig config = fresh_llama_config(fresh.preset, fresh.fields);
  require<ConfigError>(!config.fused_qkv,
                       "[model.preset] {} is a preset of model.arch baichuan; found it with llama; change one of them",
                       fresh.preset.value_or(""));
  return make(config, fresh);
}

/// Any preset's sizes, in Baichuan's layers.
std::shared_ptr<nn::CausalLMImpl> make_baichuan(const models::FreshModel& fresh) {
  LlamaConfig config = fresh_llama_config(fresh.preset.value_or("baichuan-7b"), fresh.fields);
  config.fused_qkv = true;
  const bool is_grouped =
      std::ranges::any_of(fresh.fields, [](const auto& field) { return field.first == "num_key_value_heads"; });
  if (!is_grouped) config.num_key_value_heads = config.num_attention_heads;
  return make(std::move(config), fresh);
}

}  // namespace

models::Architecture baichuan_architecture() {
  models::Architecture baichuan = architecture();
  baichuan.name = baichuan.model_type = "baichuan";
  baichuan.make = make_baichuan;
  return baichuan;
}

models::Architecture architecture() {
  return {.name = "llama",
          .load = [](const Path& directory, const LoadOptions& options) { return load(directory, options); },
          .make = make_llama,
          .save = [](nn::CausalLMImpl& model, const Path& directory,
                     const SaveOptions& options) { save(as_llama(model), directory, options); },
          .convert = [](const Path& from, const Path& directory,
                        const SaveOptions& options) { convert_hf(from, directory, options); },
          .offload_to_host = [](nn::CausalLMImpl& model, const at::Device& device) { offload_to_host(as_llama(model), device); },
          .loaded_fields = {"tie_word_embeddings"},
          .shapes = [](nn::CausalLMImpl& model) { return shapes_of(as_llama(model)); }};
}

}  // namespace lora::llama
