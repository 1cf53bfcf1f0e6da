#include <array>

#include "core/check.h"
#include "lora/core/text.h"
#include "lora/models/llama/config.h"

namespace lora::llama {
namespace {

struct Preset {
  const char* name;
  int64_t hidden, inner, layers, heads, kv_heads, positions, vocabulary;
  double epsilon = 1e-5;
  bool fused_qkv = false;
};

// Llama's sizes from the params.json of both versions, Baichuan's from its config.json; the small ones are for training from
// scratch.
constexpr std::array kPresets = {
    Preset{"llama-7b", 4096, 11008, 32, 32, 32, 2048, 32000, 1e-6},
    Preset{"llama-13b", 5120, 13824, 40, 40, 40, 2048, 32000, 1e-6},
    Preset{"llama-30b", 6656, 17920, 60, 52, 52, 2048, 32000, 1e-6},
    Preset{"llama-65b", 8192, 22016, 80, 64, 64, 2048, 32000, 1e-5},
    Preset{"llama2-7b", 4096, 11008, 32, 32, 32, 4096, 32000},
    Preset{"llama2-13b", 5120, 13824, 40, 40, 40, 4096, 32000},
    Preset{"llama2-70b", 8192, 28672, 80, 64, 8, 4096, 32000},
    Preset{"baichuan-7b", 4096, 11008, 32, 32, 32, 4096, 64000, 1e-6, /*fused_qkv=*/true},
    Preset{"tiny", 64, 176, 2, 4, 2, 512, 512},
    Preset{"15m", 288, 768, 6, 6, 6, 1024, 32000},
    Preset{"110m", 768, 2048, 12, 12, 12, 2048, 32000},
    Preset{"1b", 2048, 5632, 22, 32, 4, 2048, 32000},
};

}  // namespace

std::vector<std::string> llama_preset_names() {
  std::vector<std::string> names;
  for (const auto& preset : kPresets) names.emplace_back(preset.name);
  return names;
}

LlamaConfig llama_preset(std::string_view name) {
  for (const auto& preset : kPresets) {
    if (name != preset.name) continue;
    LlamaConfig config;
    config.hidden_size = preset.hidden;
    config.intermediate_size = preset.inner;
    config.num_hidden_layers = preset.layers;
    config.num_attention_heads = preset.heads;
    config.num_key_value_heads = preset.kv_heads;
    config.head_dim = preset.hidden / preset.heads;
    config.max_position_embeddings = preset.positions;
    config.vocab_size = preset.vocabulary;
    config.rms_norm_eps = preset.epsilon;
    config.fused_qkv = preset.fused_qkv;
    return config;
  }
  fail<ConfigError>("[model.preset] a preset must be one of {}; found \"{}\"", fmt::join(llama_preset_names(), ", "), name);
}

}  // namespace lora::llama
