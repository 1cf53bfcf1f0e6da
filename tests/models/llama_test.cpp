#include "lora/models/llama.h"

#include <ATen/ATen.h>
#include <torch/utils.h>

#include <cstdlib>

#include "catch.h"
#include "formats/json.h"
#include "lora/core/error.h"
#include "lora/core/file.h"
#include "lora/io/safetensors.h"
#include "lora/nn/loss.h"
#include "lora/ops/device.h"

using namespace lora;

namespace {

llama::LlamaConfig small_config() {
  return llama::fresh_llama_config(std::nullopt, {{"vocab_size", "32"},
                                                  {"hidden_size", "16"},
                                                  {"intermediate_size", "24"},
                                                  {"num_hidden_layers", "2"},
                                                  {"num_attention_heads", "4"},
                                                  {"num_key_value_heads", "2"},
                                                  {"max_position_embeddings", "16"}});
}

Batch batch_of(const std::vector<int64_t>& ids) {
  Batch batch;
  batch.input_ids_BS = at::tensor(ids, at::kLong).unsqueeze(0);
  return batch;
}

/// A directory of the test, empty at the start and removed at the end.
class Folder {
 public:
  explicit Folder(const std::string& name) : path(std::filesystem::temp_directory_path() / ("lora_llama_test_" + name)) {
    std::filesystem::remove_all(path);
    std::filesystem::create_directories(path);
  }
  ~Folder() { std::filesystem::remove_all(path); }
  const Path path;
};

std::string edited_config(const std::string& key, const formats::Json& value) {
  auto json = formats::parse_json(llama::write_llama_config(small_config()), "config");
  json[key] = value;
  return json.dump();
}

}  // namespace

TEST_CASE("llama config: what is written is read back, old and new spellings agree", "[llama]") {
  const auto config = small_config();
  CHECK(llama::parse_llama_config(llama::write_llama_config(config), "config") == config);
  const auto old = llama::parse_llama_config(
      R"({"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32,
          "intermediate_size": 11008, "vocab_size": 32000, "rope_theta": 5e5, "torch_dtype": "float16",
          "rms_norm_eps": 1e-5, "max_position_embeddings": 4096})",
      "config");
  const auto modern = llama::parse_llama_config(
      R"({"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32,
          "intermediate_size": 11008, "vocab_size": 32000, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"},
          "dtype": "float16", "rms_norm_eps": 1e-5, "max_position_embeddings": 4096})",
      "config");
  CHECK(old == modern);
  CHECK(old.num_key_value_heads == 32);
  CHECK(old.head_dim == 128);
  CHECK(old.dtype == DType::kF16);
}

TEST_CASE("llama config: what this model is not is refused", "[llama]") {
  CHECK_THROWS_AS(llama::parse_llama_config(edited_config("model_type", "mistral"), "c"), FormatError);
  CHECK_THROWS_AS(llama::parse_llama_config(edited_config("hidden_act", "gelu"), "c"), FormatError);
  CHECK_THROWS_AS(llama::parse_llama_config(edited_config("rope_scaling", {{"type", "linear"}, {"factor", 2.0}}), "c"),
                  FormatError);
  CHECK_THROWS_AS(llama::parse_llama_config(edited_config("quantization_config", {{"bits", 4}}), "c"), FormatError);
  CHECK_THROWS_AS(llama::parse_llama_config(edited_config("num_hidden_layers", -1), "c"), FormatError);
  CHECK_THROWS_AS(llama::parse_llama_config(edited_config("num_hidden_layers", "two"), "c"), FormatError);
  CHECK_THROWS_AS(llama::parse_llama_config(edited_config("num_key_value_heads", 3), "c"), FormatError);
  CHECK_THROWS_AS(llama::parse_llama_config("[]", "c"), FormatError);
}

TEST_CASE("llama presets have the published parameter counts", "[llama]") {
  const auto count = [](const char* preset) {
    int64_t sum = 0;
    for (const auto& [name, shape] : llama::llama_weight_shapes(llama::llama_preset(preset))) {
      int64_t numbers = 1;
      for (const int64_t size : shape) numbers *= size;
      sum += numbers;
    }
    return sum;
  };
  CHECK(count("llama-7b") == 6'738'415'616);
  CHECK(count("llama-13b") == 13'015'864'320);
  CHECK(count("llama-30b") == 32'528'943'616);
  CHECK(count("llama-65b") == 65'285'660'672);
  CHECK(count("llama2-7b") == 6'738'415'616);
  CHECK(count("llama2-13b") == 13'015'864'320);
  CHECK(count("llama2-70b") == 68'976'648'192);
  CHECK_THROWS_AS(llama::llama_preset("llama2-8b"), ConfigError);
}

TEST_CASE("llama: generation with a cache gives the logits of one whole pass", "[llama]") {
  seed_generators(3);
  llama::LlamaForCausalLM model(small_config());
  model->eval();
  const torch::NoGradGuard no_grad;
  const std::vector<int64_t> ids = {1, 5, 9, 2, 30, 7, 7};
  const auto whole = model->forward(batch_of(ids));
  nn::KvCache cache(model->num_layers());
  // Pieces of one and of several tokens.
  for (const auto& [begin, end] : std::vector<std::pair<size_t, size_t>>{{0, 3}, {3, 4}, {4, 7}}) {
    const std::vector<int64_t> piece(ids.begin() + static_cast<std::ptrdiff_t>(begin),
                                     ids.begin() + static_cast<std::ptrdiff_t>(end));
    const auto part = model->forward(batch_of(piece), &cache);
    const auto expected = whole.slice(1, static_cast<int64_t>(begin), static_cast<int64_t>(end));
    CHECK(at::allclose(part, expected, 1e-5, 1e-5));
  }
  CHECK(cache.length() == 7);
}

TEST_CASE("llama: a cache that grows keeps what it holds", "[llama]") {
  seed_generators(5);
  auto config = small_config();
  config.max_position_embeddings = 300;
  llama::LlamaForCausalLM model(config);
  model->eval();
  const torch::NoGradGuard no_grad;
  const auto ids = at::randint(0, 32, {290}, at::kLong);
  const std::vector<int64_t> all(ids.data_ptr<int64_t>(), ids.data_ptr<int64_t>() + ids.numel());
  const auto whole = model->forward(batch_of(all));
  nn::KvCache cache(model->num_layers());
  for (size_t i = 0; i < all.size(); ++i) {
    const auto part = model->forward(batch_of({all[i]}), &cache).flatten();
    REQUIRE(at::allclose(part, whole[0][static_cast<int64_t>(i)], 1e-4, 1e-4));
  }
}

TEST_CASE("llama: a sequence beyond the context is refused", "[llama]") {
  llama::LlamaForCausalLM model(small_config());
  CHECK_THROWS_AS(model->forward(batch_of(std::vector<int64_t>(17, 1))), ShapeError);
}

TEST_CASE("llama: a tied head is the embedding's own tensor", "[llama]") {
  auto config = small_config();
  config.tie_word_embeddings = true;
  llama::LlamaForCausalLM model(config);
  CHECK(model->lm_head->weight.is_same(model->model->embed_tokens->weight));
  Batch batch = batch_of({1, 2, 3});
  batch.labels_BS = batch.input_ids_BS;
  nn::causal_lm_loss_sum(*model, batch).backward();
  CHECK(model->model->embed_tokens->weight.grad().defined());
}

TEST_CASE("llama: the loss of labelled rows equals the loss of whole logits", "[llama]") {
  seed_generators(4);
  llama::LlamaForCausalLM model(small_config());
  Batch batch = batch_of({1, 5, 9, 2, 30, 7});
  batch.labels_BS = at::tensor({-100, -100, 9, 2, -100, 7}, at::kLong).unsqueeze(0);
  const auto logits = model->forward(batch).slice(1, 0, 5).squeeze(0);
  const auto expected = at::cross_entropy_loss(logits, batch.labels_BS.slice(1, 1).squeeze(0), {}, at::Reduction::Sum, -100);
  CHECK(nn::causal_lm_loss_sum(*model, batch).item<double>() == Approx(expected.item<double>()).epsilon(1e-6));
  batch.labels_BS.fill_(-100);
  CHECK(nn::causal_lm_loss_sum(*model, batch).item<double>() == 0);
}

TEST_CASE("llama: saved whole or in shards, loaded the same; tied models too", "[llama]") {
  for (const bool tied : {false, true}) {
    auto config = small_config();
    config.tie_word_embeddings = tied;
    llama::LlamaForCausalLM model(config);
    for (const uint64_t shard_bytes : {uint64_t{4000}, uint64_t{1} << 30}) {
      const Folder folder("save");
      llama::save(*model, folder.path, {.dtype = std::nullopt, .copy_tokenizer_from = std::nullopt, .shard_bytes = shard_bytes});
      CHECK(std::filesystem::exists(folder.path / "model.safetensors.index.json") == (shard_bytes == 4000));
      const auto loaded = llama::load(folder.path);
      const auto batch = batch_of({1, 2, 3});
      CHECK(at::equal(loaded->forward(batch), model->forward(batch)));
    }
  }
}

TEST_CASE("llama: what every model can compute may lie beside its weights, and nothing else", "[llama]") {
  const Folder folder("beside");
  auto config = small_config();
  config.tie_word_embeddings = true;
  llama::LlamaForCausalLM model(config);
  llama::save(*model, folder.path);
  const Path file = folder.path / "model.safetensors";
  auto tensors = io::load_safetensors(file);
  tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = at::ones({2});
  tensors["lm_head.weight"] = tensors.at("model.embed_tokens.weight");
  const auto save = [&] { io::save_safetensors(file, io::NamedTensors(tensors.begin(), tensors.end())); };
  save();
  CHECK(at::equal(llama::load(folder.path)->forward(batch_of({1, 2, 3})), model->forward(batch_of({1, 2, 3}))));
  tensors["lm_head.weight"] = at::zeros({32, 16});  // another one is no table that two share
  save();
  CHECK(llama::load(folder.path)->forward(batch_of({1, 2, 3})).eq(0).all().item<bool>());
  tensors["model.other.weight"] = at::ones({2});
  save();
  CHECK_THROWS_WITH(llama::load(folder.path), Catch::Matchers::Contains("model.other.weight"));
}

TEST_CASE("llama: saved in another type, which config and weights say", "[llama]") {
  const Folder folder("dtype");
  llama::LlamaForCausalLM model(small_config());
  llama::save(*model, folder.path, {.dtype = DType::kBF16, .copy_tokenizer_from = std::nullopt});
  const auto loaded = llama::load(folder.path);
  CHECK(loaded->config.dtype == DType::kBF16);
  CHECK(at::equal(loaded->lm_head->weight, model->lm_head->weight.to(at::kBFloat16)));
  CHECK(llama::load(folder.path, {.dtype = at::kFloat})->config.dtype == DType::kF32);
}

TEST_CASE("llama: one end token or several are saved for generation as they are", "[llama]") {
  const Folder folder("ends");
  for (const std::vector<int64_t>& ends : {std::vector<int64_t>{2}, {2, 7}}) {
    auto config = small_config();
    config.eos_token_ids = ends;
    llama::LlamaForCausalLM model(config);
    llama::save(*model, folder.path);
    const auto saved = formats::parse_json(read_file(folder.path / "generation_config.json"), "generation_config.json");
    CHECK(saved.at("eos_token_id") == (ends.size() == 1 ? formats::Json(2) : formats::Json(ends)));
  }
}

TEST_CASE("llama: weights that do not fit the config are named", "[llama]") {
  const Folder folder("misfit");
  llama::LlamaForCausalLM model(small_config());
  llama::save(*model, folder.path);
  write_file_atomically(folder.path / "config.json", edited_config("intermediate_size", 32));
  CHECK_THROWS_WITH(llama::load(folder.path), Catch::Matchers::Contains("up_proj"));
  write_file_atomically(folder.path / "config.json", edited_config("num_hidden_layers", 3));
  CHECK_THROWS_WITH(llama::load(folder.path), Catch::Matchers::Contains("model.layers.2"));
  // A config that lies about its size must not cost memory.
  write_file_atomically(folder.path / "config.json", edited_config("vocab_size", 1 << 24));
  CHECK_THROWS_AS(llama::load(folder.path), ShapeError);
  CHECK_THROWS_AS(llama::load(folder.path / "none"), IoError);
}

TEST_CASE("llama: rotary rows go from Meta's order to Hugging Face's", "[llama]") {
  // Two heads of size 4: rows (pair 0: a b, pair 1: c d) become (a c | b d).
  const auto weight = at::arange(8, at::kFloat).view({8, 1});
  const auto expected = at::tensor({0, 2, 1, 3, 4, 6, 5, 7}, at::kFloat).view({8, 1});
  CHECK(at::equal(llama::meta_to_hf_rotary(weight, 2), expected));
}

TEST_CASE("llama2.c checkpoints of both layouts give the published model", "[llama]") {
  const char* data = std::getenv("LORA_TEST_DATA");
  if (data == nullptr) {
    WARN("skipped: LORA_TEST_DATA is not set");
    return;
  }
  const Path stories = Path(data) / "data/stories260K";
  const auto golden = formats::parse_json(read_file(stories / "golden.json"), "golden.json");
  for (const char* name : {"stories260K.bin", "stories260K_v1.bin"}) {
    const Folder folder("stories");
    llama::convert_llama2c(stories / name, folder.path);
    const auto model = llama::load(folder.path);
    const torch::NoGradGuard no_grad;
    std::vector<int64_t> ids = {golden.at("greedy_ids").at(0).get<int64_t>()};
    while (ids.size() < golden.at("greedy_ids").size()) {
      ids.push_back(model->forward(batch_of(ids)).select(1, -1).argmax().item<int64_t>());
    }
    CHECK(ids == golden.at("greedy_ids").get<std::vector<int64_t>>());
  }
}
