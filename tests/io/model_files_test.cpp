#include "lora/io/model_files.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "catch.h"
#include "lora/core/error.h"
#include "support.h"

using namespace lora;

namespace {

io::TensorSource source(std::string name, const at::Tensor& tensor) {
  return {.name = std::move(name), .dtype = DType::kF32, .shape = tensor.sizes().vec(), .read = [tensor] { return tensor; }};
}

/// Five tensors of 400 bytes.
std::vector<io::TensorSource> five_tensors() {
  std::vector<io::TensorSource> tensors;
  for (int i = 0; i < 5; ++i) {
    tensors.push_back(source("t" + std::to_string(i), at::full({10, 10}, i)));
  }
  return tensors;
}

std::string index_of(std::string_view map) { return R"({"metadata":{"total_size":8},"weight_map":)" + std::string(map) + "}"; }

}  // namespace

TEST_CASE("a small model is one file, a large one is shards with an index", "[io]") {
  const testing::ScratchFolder folder;
  const uint64_t limit = GENERATE(1'000'000, 800, 1);
  io::save_model_files(folder.path(), five_tensors(), limit);

  const io::ModelFiles files(folder.path());
  CHECK(files.directory() == folder.path());
  std::vector<std::string> names = files.names();
  std::sort(names.begin(), names.end());
  CHECK(names == std::vector<std::string>{"t0", "t1", "t2", "t3", "t4"});
  for (int i = 0; i < 5; ++i) {
    const std::string name = "t" + std::to_string(i);
    CHECK(files.contains(name));
    CHECK(files.entry(name).shape == std::vector<int64_t>{10, 10});
    CHECK(at::equal(files.read(name), at::full({10, 10}, i)));
    at::Tensor target = at::zeros({10, 10}, at::kDouble);
    files.read_into(name, target);
    CHECK(at::equal(target, at::full({10, 10}, i, at::kDouble)));
  }
  CHECK_FALSE(files.contains("t5"));
  CHECK_THROWS_AS(files.read("t5"), FormatError);

  const auto count = std::distance(std::filesystem::directory_iterator(folder.path()), {});
  if (limit == 1'000'000) CHECK(count == 1);
  if (limit == 800) CHECK(count == 4);  // 2 + 2 + 1 tensors, and the index
  if (limit == 1) CHECK(count == 6);
  if (limit == 800) CHECK(std::filesystem::exists(folder / "model-00003-of-00003.safetensors"));
}

TEST_CASE("an index that disagrees with its shards is refused", "[io]") {
  const testing::ScratchFolder folder;
  const auto save = [&](const char* file, io::NamedTensors tensors) { io::save_safetensors(folder / file, tensors); };
  const auto index = [&](std::string_view map) { folder.write("model.safetensors.index.json", index_of(map)); };
  save("1.safetensors", {{"a", at::ones({1})}});
  save("2.safetensors", {{"b", at::ones({1})}});

  SECTION("consistent") {
    index(R"({"a":"1.safetensors","b":"2.safetensors"})");
    CHECK(io::ModelFiles(folder.path()).names().size() == 2);
  }
  SECTION("a shard is missing") {
    index(R"({"a":"1.safetensors","b":"3.safetensors"})");
    CHECK_THROWS_AS(io::ModelFiles(folder.path()), FormatError);
    CHECK_THROWS_WITH(io::ModelFiles(folder.path()), Catch::Contains("3.safetensors"));
  }
  SECTION("a name is not in its shard") {
    index(R"({"a":"1.safetensors","b":"2.safetensors","c":"2.safetensors"})");
    CHECK_THROWS_AS(io::ModelFiles(folder.path()), FormatError);
  }
  SECTION("a tensor is in two shards") {
    save("2.safetensors", {{"a", at::ones({1})}, {"b", at::ones({1})}});
    index(R"({"a":"1.safetensors","b":"2.safetensors"})");
    CHECK_THROWS_AS(io::ModelFiles(folder.path()), FormatError);
  }
  SECTION("a shard outside the directory") {
    index(R"({"a":"../1.safetensors"})");
    CHECK_THROWS_AS(io::ModelFiles(folder.path()), FormatError);
  }
  SECTION("an unlisted tensor is left out") {
    index(R"({"a":"1.safetensors"})");
    save("1.safetensors", {{"a", at::ones({1})}, {"z", at::ones({1})}});
    CHECK(io::ModelFiles(folder.path()).names() == std::vector<std::string>{"a"});
  }
}

TEST_CASE("a directory without safetensors says what it has", "[io]") {
  const testing::ScratchFolder folder;
  CHECK_THROWS_AS(io::ModelFiles(folder / "missing"), IoError);
  CHECK_THROWS_AS(io::ModelFiles(folder.path()), IoError);
  folder.write("pytorch_model-00001-of-00002.bin", "x");
  CHECK_THROWS_WITH(io::ModelFiles(folder.path()),
                    Catch::Contains("pytorch_model-00001-of-00002.bin") && Catch::Contains("safetensors"));
  folder.write("consolidated.00.pth", "x");
  CHECK_THROWS_WITH(io::ModelFiles(folder.path()), Catch::Contains("consolidated.00.pth"));
}

TEST_CASE("two tensors of one name cannot be saved", "[io]") {
  const testing::ScratchFolder folder;
  auto tensors = five_tensors();
  tensors[4].name = "t0";
  CHECK_THROWS_AS(io::save_model_files(folder.path(), tensors, 400), ShapeError);
  CHECK_THROWS_AS(io::save_model_files(folder.path(), tensors), ShapeError);
}
