#include "lora/io/adapter_files.h"

#include <ATen/ATen.h>

#include "catch.h"
#include "lora/core/error.h"
#include "lora_config.h"
#include "support.h"

using namespace lora;
using testing::lora_config;

namespace {

io::AdapterFiles example_files(int64_t rank) {
  io::AdapterFiles files;
  lora_config(files).r = rank;
  lora_config(files).lora_alpha = 16;
  lora_config(files).target_modules = std::vector<std::string>{"q_proj"};
  files.tensors["base_model.model.q_proj.lora_A.weight"] = at::full({rank, 4}, 0.5);
  files.tensors["base_model.model.q_proj.lora_B.weight"] = at::zeros({4, rank});
  return files;
}

size_t num_entries(const Path& directory) {
  return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(directory), {}));
}

}  // namespace

TEST_CASE("an adapter directory is written and read back", "[io]") {
  const testing::ScratchFolder folder;
  const Path directory = folder / "adapter";
  io::write_adapter_files(directory, example_files(3));
  CHECK(num_entries(directory) == 2);
  const io::AdapterFiles files = io::read_adapter_files(directory);
  CHECK(lora_config(files).r == 3);
  CHECK(lora_config(files).lora_alpha == 16);
  REQUIRE(files.tensors.size() == 2);
  CHECK(at::equal(files.tensors.at("base_model.model.q_proj.lora_A.weight"), at::full({3, 4}, 0.5)));
}

TEST_CASE("writing again replaces the adapter and keeps what else is there", "[io]") {
  const testing::ScratchFolder folder;
  const Path directory = folder / "adapter";
  io::write_adapter_files(directory, example_files(3));
  folder.write("adapter/README.md", "card");
  folder.write("adapter/second/adapter_config.json", "{}");
  io::write_adapter_files(directory, example_files(5));
  CHECK(lora_config(io::read_adapter_files(directory)).r == 5);
  CHECK(num_entries(directory) == 4);
  CHECK(std::filesystem::file_size(directory / "README.md") == 4);
  CHECK(std::filesystem::exists(directory / "second/adapter_config.json"));
  CHECK(num_entries(folder.path()) == 1);
}

TEST_CASE("a failing write leaves the old adapter", "[io]") {
  const testing::ScratchFolder folder;
  const Path directory = folder / "adapter";
  io::write_adapter_files(directory, example_files(3));
  io::AdapterFiles broken = example_files(5);
  broken.tensors["bad"] = at::Tensor();
  CHECK_THROWS_AS(io::write_adapter_files(directory, broken), ShapeError);
  CHECK(lora_config(io::read_adapter_files(directory)).r == 3);
  CHECK(num_entries(folder.path()) == 1);
}

TEST_CASE("incomplete adapter directories are refused", "[io]") {
  const testing::ScratchFolder folder;
  CHECK_THROWS_AS(io::read_adapter_files(folder.path()), IoError);
  folder.write("adapter_config.json", R"({"peft_type":"LORA","target_modules":["q_proj"]})");
  CHECK_THROWS_AS(io::read_adapter_files(folder.path()), IoError);
  folder.write("adapter_model.bin", "pickle");
  CHECK_THROWS_WITH(io::read_adapter_files(folder.path()), Catch::Contains("adapter_model.bin"));
  folder.write("adapter_model.safetensors", "broken");
  CHECK_THROWS_AS(io::read_adapter_files(folder.path()), FormatError);
}

TEST_CASE("an adapter of PEFT is read", "[io]") {
  const auto directory = testing::outside_data("fixtures/peft/lora/final");
  if (!directory) return;
  const io::AdapterFiles files = io::read_adapter_files(*directory);
  const auto found = files.tensors.find("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight");
  REQUIRE(found != files.tensors.end());
  CHECK(found->second.size(0) == lora_config(files).r);
}
