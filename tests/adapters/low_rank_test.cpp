#include "lora/adapters/low_rank.h"

#include <ATen/ATen.h>

#include "lora/core/error.h"
#include "lora_config.h"
#include "support.h"

using namespace lora;
using testing::lora_config;
using testing::message_of;

namespace {

io::AdapterFiles files_with(std::map<std::string, at::Tensor> tensors) {
  io::AdapterFiles files;
  lora_config(files).r = 2;
  lora_config(files).lora_alpha = 6;
  files.tensors = std::move(tensors);
  return files;
}

at::Tensor a() { return at::ones({2, 5}); }
at::Tensor b() { return at::ones({3, 2}); }

}  // namespace

TEST_CASE("pairs are found under every spelling of their names", "[adapters]") {
  const std::pair<const char*, const char*> spellings[] = {
      {"base_model.model.x.up.lora_A.weight", "base_model.model.x.up.lora_B.weight"},
      {"x.up.lora_A.weight", "x.up.lora_B.weight"},
      {"base_model.model.x.up.lora_A.mine.weight", "base_model.model.x.up.lora_B.mine.weight"},
      {"base_model.model.x.up.lora_A", "base_model.model.x.up.lora_B"}};
  for (const auto& [a_name, b_name] : spellings) {
    INFO(a_name);
    const auto adapter = low_rank_adapter(files_with({{a_name, a()}, {b_name, b()}}));
    CHECK(adapter.others.empty());
    REQUIRE(adapter.updates.size() == 1);
    CHECK(adapter.updates[0].path == "x.up");
    CHECK(adapter.updates[0].scale == 3);
    CHECK_FALSE(adapter.updates[0].embedding);
    CHECK(adapter.updates[0].a_RI.size(1) == 5);
    CHECK(adapter.updates[0].b_OR.size(0) == 3);
  }
}

TEST_CASE("embeddings, other tensors and copies of the base are told apart", "[adapters]") {
  const auto adapter = low_rank_adapter(files_with({{"base_model.model.table.lora_embedding_A", a().to(at::kHalf)},
                                                    {"base_model.model.table.lora_embedding_B", b().to(at::kBFloat16)},
                                                    {"base_model.model.table.base_layer.weight", at::ones({5, 3})},
                                                    {"base_model.model.head.weight", at::ones({2})},
                                                    {"base_model.model.up.lora_B.bias", at::ones({2})},
                                                    {"base_model.model.up.lora_magnitude_vector", at::ones({2})}}));
  REQUIRE(adapter.updates.size() == 1);
  CHECK(adapter.updates[0].embedding);
  CHECK(adapter.updates[0].a_RI.scalar_type() == at::kFloat);
  CHECK(adapter.updates[0].b_OR.scalar_type() == at::kFloat);
  std::map<std::string, std::string> parts;
  for (const auto& entry : adapter.others) parts[entry.first] = part_of_method(entry.first);
  CHECK(parts == std::map<std::string, std::string>{{"head.weight", "a module trained whole (modules_to_save)"},
                                                    {"up.lora_B.bias", "a bias"},
                                                    {"up.lora_magnitude_vector", "DoRA"}});
}

TEST_CASE("every module has its own rank, alpha and kind of scale", "[adapters]") {
  auto files = files_with({{"x.up.lora_A.weight", at::ones({4, 5})},
                           {"x.up.lora_B.weight", at::ones({3, 4})},
                           {"x.down.lora_A.weight", a()},
                           {"x.down.lora_B.weight", b()}});
  lora_config(files).rank_pattern = {{"up", 4}};
  lora_config(files).alpha_pattern = {{"x\\.down", 10}};
  const auto scales = [&] {
    std::map<std::string, double> found;
    for (const auto& update : low_rank_adapter(files).updates) found[update.path] = update.scale;
    return found;
  };
  CHECK(scales() == std::map<std::string, double>{{"x.up", 1.5}, {"x.down", 5}});
  lora_config(files).use_rslora = true;
  CHECK(scales().at("x.up") == 3);
  CHECK(std::abs(scales().at("x.down") - 10 / std::sqrt(2.0)) < 1e-12);
}

TEST_CASE("halves, doubles and wrong ranks are refused by the module's name", "[adapters]") {
  const auto refusal = [](std::map<std::string, at::Tensor> tensors) {
    const auto text = message_of<ShapeError>([&] { low_rank_adapter(files_with(std::move(tensors))); });
    CHECK(text.find("x.up") != std::string::npos);
    return text;
  };
  CHECK(refusal({{"x.up.lora_A.weight", a()}}).find("only lora_A") != std::string::npos);
  CHECK(refusal({{"x.up.lora_B.weight", b()}}).find("only lora_B") != std::string::npos);
  refusal({{"x.up.lora_A.weight", a()}, {"base_model.model.x.up.lora_A.weight", a()}, {"x.up.lora_B.weight", b()}});
  refusal({{"x.up.lora_A.weight", at::ones({3, 5})}, {"x.up.lora_B.weight", at::ones({3, 3})}});
  refusal({{"x.up.lora_A.weight", a()}, {"x.up.lora_B.weight", at::ones({3, 1})}});
  refusal({{"x.up.lora_A.weight", at::ones({10})}, {"x.up.lora_B.weight", b()}});
  refusal({{"x.up.lora_A.weight", a().to(at::kLong)}, {"x.up.lora_B.weight", b()}});
}
