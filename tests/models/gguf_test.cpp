#include "lora/models/llama/gguf.h"

#include <ATen/ATen.h>

#include <map>

#include "lora/core/error.h"
#include "lora/core/file.h"
#include "lora/models/llama.h"
#include "lora_config.h"
#include "support.h"

using namespace lora;
using testing::lora_config;
using testing::message_of;
using testing::ScratchFolder;

namespace {

Path reference() { return testing::reference_folder() / "peft"; }

io::AdapterFiles files_of(const std::string& name) { return io::read_adapter_files(reference() / name / "final"); }

/// A GGUF file's tensors as torch sees them, read by offsets.
struct Read {
  explicit Read(const Path& file) : bytes(read_file(file)) {
    header = formats::parse_gguf(std::as_bytes(std::span(bytes)), file.string());
    for (const auto& entry : header.tensors) {
      const auto type = entry.type == 0 ? at::kFloat : entry.type == 1 ? at::kHalf : at::kBFloat16;
      tensors[entry.name] = at::from_blob(bytes.data() + header.data_start + entry.offset, entry.shape, type).clone();
    }
  }
  float alpha() const { return *header.find("adapter.lora.alpha")->as<float>(); }
  uint32_t file_type() const { return *header.find("general.file_type")->as<uint32_t>(); }
  /// What llama.cpp adds to the weight: alpha / rank * B A.
  at::Tensor update(const std::string& name) const {
    const auto &a = tensors.at(name + ".weight.lora_a"), &b = tensors.at(name + ".weight.lora_b");
    return b.to(at::kFloat).mm(a.to(at::kFloat)) * (alpha() / static_cast<float>(b.size(1)));
  }

  std::string bytes;
  formats::GgufHeader header;
  std::map<std::string, at::Tensor> tensors;
};

double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  REQUIRE(a.sizes() == b.sizes());
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

/// The reason for which these files cannot become a GGUF LoRA; nothing is left behind.
template <class E>
std::string refusal(const io::AdapterFiles& files, const llama::LlamaConfig& config, DType dtype = DType::kF32) {
  const ScratchFolder folder;
  const auto text = message_of<E>([&] { llama::save_gguf_lora(folder / "a.gguf", config, files, dtype); });
  CHECK(std::filesystem::is_empty(folder.path()));
  return text;
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("GGUF LoRAs are those of the reference, byte by byte", "[models]") {
  const std::pair<const char*, const char*> cases[] = {
      {"lora", "base"}, {"lora_gqa", "base_gqa"}, {"rslora", "base"}, {"lora_all_linear_patterns", "base"}};
  for (const auto& [name, base] : cases) {
    INFO(name);
    const ScratchFolder folder;
    llama::save_gguf_lora(folder / "ours.gguf", llama::read_llama_config(reference() / base), files_of(name));
    CHECK(read_file(folder / "ours.gguf") == read_file(reference() / "gguf_lora" / (std::string(name) + ".gguf")));
  }
}

TEST_CASE("GGUF LoRAs in half precision hold the rounded numbers", "[models]") {
  const auto config = llama::read_llama_config(reference() / "base_gqa");
  const Read whole(reference() / "gguf_lora/lora_gqa.gguf");
  for (const auto& [dtype, type, file_type] :
       {std::tuple{DType::kF16, at::kHalf, 1u}, std::tuple{DType::kBF16, at::kBFloat16, 32u}}) {
    const ScratchFolder folder;
    llama::save_gguf_lora(folder / "a.gguf", config, files_of("lora_gqa"), dtype);
    const Read read(folder / "a.gguf");
    CHECK(read.file_type() == file_type);
    REQUIRE(read.tensors.size() == whole.tensors.size());
    for (const auto& [name, tensor] : whole.tensors) CHECK(at::equal(read.tensors.at(name), tensor.to(type)));
  }
  const ScratchFolder folder;
  CHECK_THROWS_AS(llama::save_gguf_lora(folder / "a.gguf", config, files_of("lora_gqa"), DType::kF64), ConfigError);
}

TEST_CASE("an embedding's pair stands as llama.cpp looks rows up", "[models]") {
  const auto files = files_of("lora_embedding");
  const ScratchFolder folder;
  llama::save_gguf_lora(folder / "a.gguf", llama::read_llama_config(reference() / "base"), files);
  const Read read(folder / "a.gguf");
  const std::string name = "base_model.model.model.embed_tokens.lora_embedding_";
  const at::Tensor a_RV = files.tensors.at(name + "A"), b_DR = files.tensors.at(name + "B");
  const at::Tensor expected_VD = b_DR.mm(a_RV).t() * (lora_config(files).lora_alpha / static_cast<double>(lora_config(files).r));
  // get_rows(lora_a, ids), then a product with lora_b.
  const at::Tensor ids = at::tensor({3, 0, 127}, at::kLong);
  const auto &a_VR = read.tensors.at("token_embd.weight.lora_a"), &b = read.tensors.at("token_embd.weight.lora_b");
  REQUIRE(a_VR.size(0) == 128);
  const double scale = read.alpha() / static_cast<double>(b.size(1));
  CHECK(largest_difference(a_VR.index_select(0, ids).mm(b.t()) * scale, expected_VD.index_select(0, ids)) < 1e-6);
  CHECK(expected_VD.abs().max().item<double>() > 1e-3);
}

TEST_CASE("updates of any scale are folded, those of rank 0 left out", "[models]") {
  at::manual_seed(3);
  const auto config = llama::read_llama_config(reference() / "base");
  // AdaLoRA with init_r 6, alpha 12: two rows left of v_proj, none of o_proj.
  const at::Tensor a_RI = at::randn({2, 64}), e_R1 = at::randn({2, 1}), b_OR = at::randn({64, 2});
  const double scale = 12 / (6 + 1e-5);
  const std::vector<LowRankValue> updates = {
      {.path = "model.layers.1.self_attn.v_proj", .a_RI = a_RI * e_R1, .b_OR = b_OR, .scale = scale},
      {.path = "model.layers.1.self_attn.o_proj", .a_RI = at::empty({0, 64}), .b_OR = at::empty({64, 0}), .scale = scale},
      {.path = "lm_head", .a_RI = at::randn({3, 64}), .b_OR = at::randn({128, 3}), .scale = -0.25}};
  const ScratchFolder folder;
  llama::save_gguf_lora(folder / "a.gguf", config, updates, 12);
  const Read read(folder / "a.gguf");
  CHECK(read.tensors.size() == 4);
  CHECK(largest_difference(read.update("blk.1.attn_v"), b_OR.mm(a_RI * e_R1) * scale) < 1e-5);
  CHECK(largest_difference(read.update("output"), updates[2].b_OR.mm(updates[2].a_RI) * -0.25) < 1e-5);

  const ScratchFolder empty;
  const auto none = message_of<ShapeError>([&] { llama::save_gguf_lora(empty / "a.gguf", config, {updates[1]}, 12); });
  CHECK(contains(none, "found none"));
  CHECK_THROWS_AS(llama::save_gguf_lora(empty / "a.gguf", config, updates, 0), ConfigError);
  CHECK(std::filesystem::is_empty(empty.path()));
}

TEST_CASE("an adapter whose alpha is 0 keeps the scales of its patterns", "[models]") {
  auto files = files_of("lora");
  lora_config(files).lora_alpha = 0;
  lora_config(files).alpha_pattern = {{"q_proj", 6}};
  const ScratchFolder folder;
  llama::save_gguf_lora(folder / "a.gguf", llama::read_llama_config(reference() / "base"), files);
  const Read read(folder / "a.gguf");
  CHECK(read.alpha() != 0);  // which llama.cpp takes for no scale at all
  CHECK(read.update("blk.0.attn_v").abs().max().item<double>() == 0);
  const Read plain(reference() / "gguf_lora/lora.gguf");
  CHECK(largest_difference(read.update("blk.0.attn_q"), plain.update("blk.0.attn_q") * (6 / 8.0)) < 1e-6);
}

TEST_CASE("what GGUF cannot say is named", "[models]") {
  const auto config = llama::read_llama_config(reference() / "base");
  const auto with = [](const std::string& name) {
    auto files = files_of("lora");
    files.tensors["base_model.model." + name] = at::zeros({4});
    return files;
  };
  const std::pair<const char*, const char*> others[] = {
      {"model.layers.0.self_attn.q_proj.lora_magnitude_vector", "DoRA"},
      {"model.layers.0.self_attn.q_proj.lora_E", "AdaLoRA"},
      {"model.layers.0.self_attn.q_proj.ia3_l", "IA3"},
      {"model.layers.0.self_attn.q_proj.base_layer.bias", "a bias"},
      {"model.layers.0.self_attn.q_proj.lora_B.bias", "a bias"},
      {"prompt_embeddings", "prompt"},
      {"model.embed_tokens.token_adapter.trainable_tokens_delta", "trainable tokens"}};
  for (const auto& [name, kind] : others) {
    INFO(name);
    const auto text = refusal<ShapeError>(with(name), config);
    CHECK(contains(text, kind));
    CHECK(contains(text, "lora merge"));
  }
  CHECK(contains(refusal<ShapeError>(files_of("lora_modules_to_save"), config), "modules_to_save"));
  auto tied = config;
  tied.tie_word_embeddings = true;
  CHECK(contains(refusal<ShapeError>(files_of("lora_embedding"), tied), "tied"));
}

TEST_CASE("adapters that do not fit the model make no GGUF file", "[models]") {
  const auto config = llama::read_llama_config(reference() / "base");
  const std::string name = "base_model.model.model.layers.1.self_attn.v_proj.lora_";
  const auto changed = [&](const auto& change) {
    auto files = files_of("lora");
    change(files.tensors);
    return files;
  };
  CHECK(contains(refusal<ShapeError>(changed([&](auto& tensors) { tensors.erase(name + "A.weight"); }), config), "only lora_B"));
  CHECK(contains(refusal<ShapeError>(changed([&](auto& tensors) {
                                       tensors.erase(name + "A.weight");
                                       tensors.erase(name + "B.weight");
                                     }),
                                     config),
                 "1 missing (model.layers.1.self_attn.v_proj)"));
  CHECK(contains(refusal<ShapeError>(changed([&](auto& tensors) {
                                       tensors["base_model.model.model.layers.7.self_attn.v_proj.lora_A.weight"] =
                                           tensors.at(name + "A.weight");
                                       tensors["base_model.model.model.layers.7.self_attn.v_proj.lora_B.weight"] =
                                           tensors.at(name + "B.weight");
                                     }),
                                     config),
                 "layers.7"));
  CHECK(contains(refusal<ShapeError>(changed([&](auto& tensors) {
                                       tensors[name + "A.weight"] = at::zeros({3, 64});
                                     }),
                                     config),
                 "rank 4"));
  CHECK(contains(refusal<ShapeError>(changed([&](auto& tensors) {
                                       tensors[name + "A.weight"] = at::zeros({4, 65});
                                     }),
                                     config),
                 "[4, 65]"));
  refusal<NonFiniteError>(changed([&](auto& tensors) { tensors[name + "A.weight"].index_put_({0, 0}, NAN); }), config);
  const auto large = changed([&](auto& tensors) { tensors[name + "A.weight"].index_put_({0, 0}, 1e5); });
  CHECK(contains(refusal<NonFiniteError>(large, config, DType::kF16), "bf16"));
  const ScratchFolder folder;
  CHECK(llama::save_gguf_lora(folder / "a.gguf", config, large).tensors.size() == 8);
}

TEST_CASE("names without PEFT's prefix, or with the adapter's name, mean the same", "[models]") {
  const auto config = llama::read_llama_config(reference() / "base");
  const auto files = files_of("lora");
  auto bare = files, named = files;
  bare.tensors.clear();
  named.tensors.clear();
  for (const auto& [name, tensor] : files.tensors) {
    bare.tensors[name.substr(std::string("base_model.model.").size())] = tensor;
    named.tensors[name.substr(0, name.size() - std::string(".weight").size()) + ".default.weight"] = tensor;
  }
  for (const auto* other : {&bare, &named}) {
    const ScratchFolder folder;
    llama::save_gguf_lora(folder / "a.gguf", config, *other);
    CHECK(read_file(folder / "a.gguf") == read_file(reference() / "gguf_lora/lora.gguf"));
  }
}
