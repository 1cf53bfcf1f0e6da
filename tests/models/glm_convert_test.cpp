// ChatGLM directories in other types and shardings.
#include <ATen/ATen.h>
#include <torch/utils.h>

#include <filesystem>

#include "catch.h"
#include "glm_model.h"
#include "lora/core/error.h"
#include "lora/core/file.h"
#include "lora/io/model_files.h"
#include "lora/models/glm.h"
#include "lora/nn/few_bits.h"
#include "support.h"

using namespace lora;
using lora::testing::glm_batch;
using lora::testing::message_of;
using lora::testing::reference_folder;
using lora::testing::ScratchFolder;
using lora::testing::tiny_glm;

namespace {

int64_t num_shards(const Path& directory) {
  return std::ranges::count_if(std::filesystem::directory_iterator(directory),
                               [](const auto& entry) { return entry.path().extension() == ".safetensors"; });
}

/// [gMASK] 31, <sop> 34, <eop> 35 of the reference's vocabulary of 40.
at::Tensor reference_logits(const Path& directory) {
  const torch::NoGradGuard no_grad;
  return glm::load(directory)->forward(glm_batch({5, 6, 31, 34, 7, 8, 35}));
}

}  // namespace

TEST_CASE("glm convert: sharded anew every weight is the same bit for bit", "[glm][convert]") {
  const ScratchFolder folder;
  const Path from = reference_folder() / "glm";
  glm::convert_hf(from, folder.path(), {.shard_bytes = 20'000});
  CHECK(num_shards(folder.path()) > 2);
  const io::ModelFiles before(from), after(folder.path());
  CHECK(before.names().size() == after.names().size());
  for (const auto& name : before.names()) CHECK(at::equal(before.read(name), after.read(name)));
  CHECK(glm::read_glm_config(folder.path()) == glm::read_glm_config(from));
  CHECK(at::equal(reference_logits(folder.path()), reference_logits(from)));
}

TEST_CASE("glm convert: a half type is that of all but the norms", "[glm][convert]") {
  const ScratchFolder folder;
  const Path from = reference_folder() / "glm";
  glm::convert_hf(from, folder.path(), {.dtype = DType::kBF16});
  CHECK(glm::read_glm_config(folder.path()).dtype == DType::kBF16);
  const io::ModelFiles before(from), after(folder.path());
  for (const auto& name : before.names()) {
    const bool is_norm = name.find("layernorm") != std::string::npos;
    CHECK(at::equal(after.read(name), before.read(name).to(is_norm ? at::kFloat : at::kBFloat16)));
    CHECK(after.read(name).scalar_type() == (is_norm ? at::kFloat : at::kBFloat16));
  }
  const ScratchFolder saved;  // as loading and saving the whole has it
  glm::save(*glm::load(from), saved.path(), {.dtype = DType::kBF16});
  CHECK(read_file(folder / "config.json") == read_file(saved / "config.json"));
  CHECK(read_file(folder / "generation_config.json") == read_file(saved / "generation_config.json"));
  CHECK(read_file(folder / "model.safetensors") == read_file(saved / "model.safetensors"));
}

TEST_CASE("glm convert: few bits become the numbers that they stand for", "[glm][convert]") {
  const torch::NoGradGuard no_grad;
  const ScratchFolder plain, bits, again;
  glm::save(*tiny_glm(), plain.path());
  const auto model = glm::load(plain.path(), {.quantization = QuantizationScheme{QuantizedType::kNf4, 64, false}});
  glm::save(*model, bits.path(), {.dtype = std::nullopt, .copy_tokenizer_from = std::nullopt, .quantized = true});
  glm::convert_hf(bits.path(), again.path());
  CHECK_FALSE(glm::read_glm_config(again.path()).quantization);
  const auto loaded = glm::load(again.path());
  CHECK_FALSE(nn::few_bits_of(*loaded).scheme);
  const auto stands_for = [](nn::LinearImpl& layer) {
    layer.restore_weight();
    return layer.weight;
  };
  const auto layer = [](auto& of) {
    return of->transformer->layers->ptr(1)->template as<glm::GlmLayerImpl>()->attention->query_key_value;
  };
  CHECK(at::equal(layer(loaded)->weight, stands_for(*layer(model))));
}

TEST_CASE("glm convert: the tokenizer comes along, and a directory that does not fit is refused", "[glm][convert]") {
  const ScratchFolder from, to, broken;
  glm::save(*tiny_glm(), from.path());
  from.write("ice_text.model", "pieces");
  from.write("tokenizer_config.json", "{}");
  glm::convert_hf(from.path(), to.path(), {.dtype = std::nullopt, .copy_tokenizer_from = from.path()});
  CHECK(read_file(to / "ice_text.model") == "pieces");
  CHECK(read_file(to / "tokenizer_config.json") == "{}");

  auto config = glm::read_glm_config(from.path());
  config.num_layers = 3;
  from.write("config.json", glm::write_glm_config(config));
  const auto message = message_of<ShapeError>([&] { glm::convert_hf(from.path(), broken.path()); });
  CHECK(message.find("missing: transformer.layers.2.") != std::string::npos);
  CHECK(std::filesystem::is_empty(broken.path()));
}
