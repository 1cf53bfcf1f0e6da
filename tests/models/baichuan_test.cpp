// Baichuan-7B: Llama with q, k and v in one layer under its published name.
#include <ATen/ATen.h>
#include <torch/utils.h>

#include <cstring>

#include "catch.h"
#include "formats/json.h"
#include "lora/adapters/adapter_io.h"
#include "lora/adapters/freeze.h"
#include "lora/adapters/inject.h"
#include "lora/core/error.h"
#include "lora/core/file.h"
#include "lora/io/model_files.h"
#include "lora/io/safetensors.h"
#include "lora/models/llama.h"
#include "lora/models/llama/gguf.h"
#include "lora/ops/device.h"
#include "support.h"

using namespace lora;
using testing::message_of;
using testing::outside_data;
using testing::ScratchFolder;

namespace {

llama::LlamaConfig small_config(int64_t layers = 2) {
  auto config = llama::fresh_llama_config(std::nullopt, {{"vocab_size", "32"},
                                                         {"hidden_size", "16"},
                                                         {"intermediate_size", "24"},
                                                         {"num_hidden_layers", std::to_string(layers)},
                                                         {"num_attention_heads", "4"},
                                                         {"max_position_embeddings", "16"},
                                                         {"rms_norm_eps", "1e-6"}});
  config.fused_qkv = true;
  return config;
}

Batch batch_of(const at::Tensor& ids_S) {
  Batch batch;
  batch.input_ids_BS = ids_S.to(at::kLong).unsqueeze(0);
  return batch;
}

/// The Llama that a Baichuan is when its joined weights are taken apart.
llama::LlamaForCausalLM split(llama::LlamaForCausalLMImpl& fused) {
  auto config = fused.config;
  config.fused_qkv = false;
  llama::LlamaForCausalLM model(config);
  const torch::NoGradGuard no_grad;
  auto parameters = model->named_parameters();
  for (const auto& weight : fused.named_parameters()) {
    const std::string name = weight.key();
    const size_t packed = name.find("W_pack");
    if (packed == std::string::npos) {
      parameters[name].copy_(weight.value());
      continue;
    }
    const auto rows = weight.value().chunk(3);
    const char* const names[] = {"q_proj", "k_proj", "v_proj"};
    for (size_t i = 0; i < 3; ++i) parameters[name.substr(0, packed) + names[i] + ".weight"].copy_(rows[i]);
  }
  return model;
}

std::string config_with(const std::string& key, const formats::Json& value) {
  auto json = formats::parse_json(llama::write_llama_config(small_config()), "config");
  json[key] = value;
  return json.dump();
}

double difference(const at::Tensor& a, const at::Tensor& b) { return (a - b).abs().max().item<double>(); }

}  // namespace

TEST_CASE("baichuan: it computes what a Llama of its parts computes", "[baichuan]") {
  seed_generators(4);
  llama::LlamaForCausalLM fused(small_config());
  auto parts = split(*fused);
  const auto batch = batch_of(at::tensor({1, 5, 9, 30, 7}, at::kLong));
  CHECK(difference(fused->forward(batch), parts->forward(batch)) < 1e-6);
  for (auto* model : {&*fused, &*parts}) model->fast_paths = nn::FastPaths::none();
  CHECK(difference(fused->forward(batch), parts->forward(batch)) < 1e-6);
}

TEST_CASE("baichuan: a directory is loaded and saved under the published names", "[baichuan]") {
  seed_generators(5);
  llama::LlamaForCausalLM model(small_config());
  const ScratchFolder folder, again;
  llama::save(*model, folder.path());
  const auto config = formats::parse_json(read_file(folder / "config.json"), "config.json");
  CHECK(config.at("model_type") == "baichuan");
  CHECK(config.at("architectures").at(0) == "BaiChuanForCausalLM");
  const io::ModelFiles files(folder.path());
  CHECK(files.entry("model.layers.1.self_attn.W_pack.weight").shape == std::vector<int64_t>{48, 16});
  CHECK_FALSE(files.contains("model.layers.1.self_attn.q_proj.weight"));
  const auto loaded = llama::load(folder.path());
  CHECK(loaded->config.fused_qkv);
  CHECK(loaded->model_type() == "baichuan");
  const auto batch = batch_of(at::tensor({1, 2, 3}, at::kLong));
  CHECK(at::equal(loaded->forward(batch), model->forward(batch)));
  llama::save(*loaded, again.path());
  CHECK(read_file(again / "model.safetensors") == read_file(folder / "model.safetensors"));
  CHECK(read_file(again / "config.json") == read_file(folder / "config.json"));
}

TEST_CASE("baichuan: adapters are on W_pack, as PEFT has them", "[baichuan]") {
  seed_generators(6);
  llama::LlamaForCausalLM model(small_config());
  CHECK(model->default_targets() == std::vector<std::string>{"W_pack"});
  const auto adapters = inject(*model, LoraOptions{.rank = 2, .alpha = 4, .init = "false", .targets = model->default_targets()});
  CHECK(freeze_base(*model, adapters).trainable == 2 * 2 * (16 + 48));
  const ScratchFolder folder;
  save_adapter(adapters, folder.path());
  const auto tensors = io::load_safetensors(folder / "adapter_model.safetensors");
  const auto& a = tensors.at("base_model.model.model.layers.0.self_attn.W_pack.lora_A.weight");
  const auto& b = tensors.at("base_model.model.model.layers.0.self_attn.W_pack.lora_B.weight");
  CHECK(a.sizes() == at::IntArrayRef({2, 16}));
  CHECK(b.sizes() == at::IntArrayRef({48, 2}));
  CHECK(tensors.size() == 4);

  // The update is scale B A of the joined weight: that of each of its parts is the same A and the part's rows of B.
  llama::LlamaForCausalLM fresh(small_config());
  {
    const torch::NoGradGuard no_grad;
    auto to = fresh->named_parameters();
    for (const auto& weight : model->named_parameters()) {
      if (auto* found = to.find(weight.key())) found->copy_(weight.value());
    }
  }
  auto parts = split(*fresh);
  const auto batch = batch_of(at::tensor({1, 5, 9, 30, 7}, at::kLong));
  const auto base = fresh->forward(batch);
  load_adapter(*fresh, folder.path());
  {
    const torch::NoGradGuard no_grad;
    for (int64_t layer = 0; layer < 2; ++layer) {
      const std::string path = "model.layers." + std::to_string(layer) + ".self_attn.";
      const auto update = 2.0 * tensors.at("base_model.model." + path + "W_pack.lora_B.weight")
                                    .matmul(tensors.at("base_model.model." + path + "W_pack.lora_A.weight"));
      const auto rows = update.chunk(3);
      const char* const names[] = {"q_proj", "k_proj", "v_proj"};
      for (size_t i = 0; i < 3; ++i) parts->named_parameters()[path + names[i] + ".weight"].add_(rows[i]);
    }
  }
  CHECK(difference(fresh->forward(batch), parts->forward(batch)) < 1e-5);
  CHECK(difference(fresh->forward(batch), base) > 1e-3);
  CHECK(difference(fresh->forward(batch), model->forward(batch)) < 1e-6);
  CHECK(message_of<ShapeError>([&] {
          llama::save_gguf_lora(folder / "a.gguf", small_config(), adapter_to_files(adapters));
        }).find("W_pack") != std::string::npos);
}

TEST_CASE("baichuan: fresh weights have its name, and its namesakes are refused", "[baichuan]") {
  const auto architecture = llama::baichuan_architecture();
  CHECK(architecture.model_type == "baichuan");
  const auto model = architecture.make({.preset = "tiny", .fields = {{"num_hidden_layers", "1"}}});
  CHECK(model->model_type() == "baichuan");
  CHECK_THROWS_AS(architecture.make({.preset = "tiny", .fields = {{"num_key_value_heads", "2"}}}), ConfigError);
  CHECK_THROWS_AS(llama::architecture().make({.preset = "baichuan-7b", .parameters = {.device = at::kMeta}}), ConfigError);
  CHECK_NOTHROW(llama::parse_llama_config(config_with("hidden_act", "silu"), "c"));
  CHECK_THROWS_AS(llama::parse_llama_config(config_with("model_max_length", 4096), "c"), FormatError);
  CHECK_THROWS_AS(llama::parse_llama_config(config_with("architectures", {"BaichuanForCausalLM"}), "c"), FormatError);
  CHECK_THROWS_AS(llama::parse_llama_config(config_with("num_key_value_heads", 2), "c"), FormatError);
}

TEST_CASE("llama and baichuan: models of the presets have the published parameter counts", "[baichuan]") {
  const auto count = [](const models::Architecture& architecture, const std::string& preset) {
    const auto model =
        architecture.make({.preset = preset, .parameters = {.dtype = at::kHalf, .device = at::kMeta, .initialize = false}});
    int64_t sum = 0;
    for (const auto& parameter : model->parameters()) sum += parameter.numel();
    return sum;
  };
  CHECK(count(llama::architecture(), "llama-7b") == 6'738'415'616);
  CHECK(count(llama::architecture(), "llama-13b") == 13'015'864'320);
  CHECK(count(llama::architecture(), "llama-30b") == 32'528'943'616);
  CHECK(count(llama::architecture(), "llama-65b") == 65'285'660'672);
  CHECK(count(llama::baichuan_architecture(), "baichuan-7b") == 7'000'559'616);
  CHECK(llama::llama_preset("llama-7b").max_position_embeddings == 2048);
  CHECK(llama::llama_preset("llama-7b").rms_norm_eps == 1e-6);
}

TEST_CASE("baichuan: states are chatglm.cpp's golden ones, with a cache in three steps", "[baichuan]") {
  const auto file = outside_data("data/chatglm_cpp_goldens/baichuan7b_model.data");
  if (!file) return;
  auto config = small_config(1);
  config.vocab_size = 5;
  config.hidden_size = 32;
  config.intermediate_size = 96;
  config.num_attention_heads = config.num_key_value_heads = 8;
  config.head_dim = 4;
  llama::LlamaForCausalLM model(config);
  const std::string bytes = read_file(*file);
  size_t used = 0;
  const auto next = [&](at::IntArrayRef shape, at::ScalarType type) {
    at::Tensor values = at::empty(shape, type);
    REQUIRE(used + values.nbytes() <= bytes.size());
    std::memcpy(values.mutable_data_ptr(), bytes.data() + used, values.nbytes());
    used += values.nbytes();
    return values;
  };
  const torch::NoGradGuard no_grad;
  auto parameters = model->named_parameters();
  const std::string layer = "model.layers.0.";
  // In the file's order.
  for (const auto& name : {std::string("model.embed_tokens"), layer + "input_layernorm", layer + "self_attn.W_pack",
                           layer + "self_attn.o_proj", layer + "post_attention_layernorm", layer + "mlp.gate_proj",
                           layer + "mlp.down_proj", layer + "mlp.up_proj", std::string("model.norm")}) {
    at::Tensor weight = parameters[name + ".weight"];
    weight.copy_(next(weight.sizes(), at::kFloat));
  }
  model->eval();
  nn::KvCache cache(1);
  for (const int64_t count : {3, 1, 1}) {
    const auto ids = next({count}, at::kInt);
    const auto expected = next({count, 32}, at::kFloat);
    CHECK(difference(model->hidden(batch_of(ids), &cache).squeeze(0), expected) < 2e-6);
  }
  CHECK(used == bytes.size());
}
