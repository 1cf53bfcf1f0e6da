#include "lora/io/safetensors.h"

#include <ATen/ATen.h>

#include <cstring>
#include <fstream>

#include "catch.h"
#include "lora/core/error.h"
#include "support.h"

using namespace lora;

namespace {

/// A safetensors file put together by hand: header text, then data.
std::string file_bytes(std::string_view header, std::string_view data) {
  const uint64_t length = header.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  bytes += header;
  bytes += data;
  return bytes;
}

template <class T>
std::string raw(std::initializer_list<T> values) {
  std::string bytes(values.size() * sizeof(T), '\0');
  std::memcpy(bytes.data(), std::data(values), bytes.size());
  return bytes;
}

std::string read_all(const Path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

bool same(const at::Tensor& a, const at::Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() && at::equal(a, b);
}

}  // namespace

TEST_CASE("a file written by hand gives its values, its data unaligned", "[io]") {
  const testing::ScratchFolder folder;
  // A header of odd length puts the floats at an odd offset.
  std::string header = R"({"b":{"dtype":"BOOL","shape":[3],"data_offsets":[0,3]},)"
                       R"("w":{"dtype":"F32","shape":[2,2],"data_offsets":[3,19]},)"
                       R"("empty":{"dtype":"F16","shape":[0,5],"data_offsets":[19,19]},)"
                       R"("scalar":{"dtype":"I64","shape":[],"data_offsets":[19,27]}})";
  if (header.size() % 2 == 0) header += ' ';
  const Path path = folder.write("x.safetensors",
                                 file_bytes(header, raw<uint8_t>({0, 1, 7}) + raw<float>({1, -2, 0.5, 8}) + raw<int64_t>({-9})));
  const io::SafetensorsFile file(path);
  CHECK(file.header().tensors.size() == 4);
  CHECK(same(file.read("w"), at::tensor({1.0f, -2.0f, 0.5f, 8.0f}).view({2, 2})));
  CHECK(same(file.read("scalar"), at::scalar_tensor(-9, at::kLong)));
  CHECK(same(file.read("empty"), at::empty({0, 5}, at::kHalf)));
  // Any byte but zero is true, and is stored as the one true that torch knows.
  CHECK(same(file.read("b").view(at::kByte), at::tensor({0, 1, 1}, at::kByte)));
  CHECK(file.contains("w"));
  CHECK_FALSE(file.contains("v"));
  CHECK_THROWS_AS(file.read("v"), FormatError);
}

TEST_CASE("tensors of every type survive a file bit for bit", "[io]") {
  const testing::ScratchFolder folder;
  const Path path = folder / "all.safetensors";
  const at::Tensor bytes = at::arange(64, at::kByte);
  io::NamedTensors tensors;
  for (const c10::ScalarType type :
       {at::kByte, at::kChar, at::kFloat8_e5m2, at::kFloat8_e4m3fn, at::kFloat8_e8m0fnu, at::kFloat8_e4m3fnuz,
        at::kFloat8_e5m2fnuz, at::kShort, at::kUInt16, at::kHalf, at::kBFloat16, at::kInt, at::kUInt32, at::kFloat,
        at::kComplexFloat, at::kDouble, at::kLong, at::kUInt64}) {
    tensors.emplace_back(c10::toString(type), bytes.view(type));
  }
  tensors.emplace_back("bool", bytes.view({8, 8}) > 30);
  tensors.emplace_back("transposed", at::arange(6, at::kFloat).view({2, 3}).t());
  tensors.emplace_back("none", at::empty({3, 0}));
  tensors.emplace_back("learned", at::ones({2}).requires_grad_());
  io::save_safetensors(path, tensors, {{"step", "3"}});

  const auto loaded = io::load_safetensors(path);
  REQUIRE(loaded.size() == tensors.size());
  for (const auto& [name, tensor] : tensors) {
    INFO(name);
    const at::Tensor& got = loaded.at(name);
    CHECK(got.scalar_type() == tensor.scalar_type());
    CHECK(got.sizes() == tensor.sizes());
    CHECK_FALSE(got.requires_grad());
    const auto bits = [](const at::Tensor& t) { return t.detach().contiguous().view({-1}).view(at::kByte); };
    if (tensor.numel() > 0) CHECK(at::equal(bits(got), bits(tensor)));
  }
  const auto metadata = io::SafetensorsFile(path).header().metadata;
  CHECK(metadata == std::map<std::string, std::string>{{"format", "pt"}, {"step", "3"}});
}

TEST_CASE("read_into converts float types and refuses what does not fit", "[io]") {
  const testing::ScratchFolder folder;
  const Path path = folder / "x.safetensors";
  const at::Tensor values = at::tensor({1.0f, -2.5f, 3.25f, 0.0f, 7.0f, 100.0f}).view({2, 3});
  io::save_safetensors(path, io::NamedTensors{{"w", values}, {"ids", at::arange(6)}});
  const io::SafetensorsFile file(path);

  for (const c10::ScalarType type : {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16}) {
    at::Tensor target = at::zeros({2, 3}, type);
    file.read_into("w", target);
    CHECK(at::equal(target, values.to(type)));
  }
  at::Tensor column_major = at::zeros({3, 2}).t();
  file.read_into("w", column_major);
  CHECK(at::equal(column_major, values));
  at::Tensor parameter = at::zeros({2, 3}, at::kBFloat16).requires_grad_();
  file.read_into("w", parameter);
  CHECK(at::equal(parameter.detach(), values.to(at::kBFloat16)));

  CHECK_THROWS_AS(file.read_into("w", at::zeros({3, 2})), ShapeError);
  CHECK_THROWS_WITH(file.read_into("w", at::zeros({3, 2})), Catch::Contains("[2, 3]") && Catch::Contains("[3, 2]"));
  CHECK_THROWS_AS(file.read_into("ids", at::zeros({6})), ShapeError);
  CHECK_THROWS_AS(file.read_into("w", at::zeros({2, 3}, at::kLong)), ShapeError);
}

TEST_CASE("an open file outlives its name; one cut short is an error", "[io]") {
  const testing::ScratchFolder folder;
  const Path path = folder / "x.safetensors";
  io::save_safetensors(path, io::NamedTensors{{"w", at::ones({1000})}});
  const io::SafetensorsFile open(path);
  const Path other = folder / "other";
  io::save_safetensors(other, io::NamedTensors{{"w", at::zeros({4})}});
  std::filesystem::rename(other, path);
  CHECK(at::equal(open.read("w"), at::ones({1000})));
  CHECK(at::equal(io::SafetensorsFile(path).read("w"), at::zeros({4})));

  const io::SafetensorsFile cut(path);
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 1);
  CHECK_THROWS_AS(cut.read("w"), IoError);
  CHECK_THROWS_AS(io::SafetensorsFile(path), FormatError);
}

TEST_CASE("files that are none are refused", "[io]") {
  const testing::ScratchFolder folder;
  CHECK_THROWS_AS(io::SafetensorsFile(folder / "missing"), IoError);
  CHECK_THROWS_AS(io::SafetensorsFile(folder.path()), IoError);
  CHECK_THROWS_AS(io::SafetensorsFile(folder.write("empty", "")), FormatError);
  CHECK_THROWS_AS(io::SafetensorsFile(folder.write("short", "1234")), FormatError);
  CHECK_THROWS_AS(io::SafetensorsFile(folder.write("text", "not a tensor file at all")), FormatError);
  const Path wide = folder.write("f4", file_bytes(R"({"x":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}})", "a"));
  CHECK_THROWS_AS(io::SafetensorsFile(wide).read("x"), FormatError);
  // Legal for the format (no bytes at all), but no tensor has such strides: loading it may fail,
  // but only with an error of ours.
  const Path absurd =
      folder.write("absurd", file_bytes(R"({"x":{"dtype":"F32","shape":[0,4611686018427387904,4611686018427387904],)"
                                        R"("data_offsets":[0,0]}})",
                                        ""));
  try {
    io::load_safetensors(absurd);
  } catch (const Error&) {
  }
}

TEST_CASE("every damaged byte of a small file gives a file or an error, never a crash", "[io]") {
  const testing::ScratchFolder folder;
  const Path path = folder / "x.safetensors";
  io::save_safetensors(path, io::NamedTensors{{"a", at::ones({2, 3})}, {"b", at::ones({4}, at::kHalf)}});
  const std::string good = read_all(path);
  int refused = 0;
  for (size_t i = 0; i < good.size(); ++i) {
    for (const int flip : {0x01, 0x80}) {
      std::string bad = good;
      bad[i] = static_cast<char>(bad[i] ^ flip);
      folder.write("bad", bad);
      try {
        io::load_safetensors(folder / "bad");
      } catch (const Error&) {
        ++refused;
      }
    }
  }
  CHECK(refused > 100);
}

TEST_CASE("saving refuses what a file cannot hold", "[io]") {
  const testing::ScratchFolder folder;
  const at::Tensor one = at::ones({1});
  CHECK_THROWS_AS(io::save_safetensors(folder / "x", io::NamedTensors{{"a", one}, {"a", one}}), ShapeError);
  CHECK_THROWS_AS(io::save_safetensors(folder / "x", io::NamedTensors{{"a", at::Tensor()}}), ShapeError);
  CHECK_THROWS_AS(io::save_safetensors(folder / "x", io::NamedTensors{{"a", at::eye(2).to_sparse()}}), ShapeError);
  CHECK_THROWS_AS(io::save_safetensors(folder / "none" / "x", io::NamedTensors{{"a", one}}), IoError);
  const std::vector<io::TensorSource> lying = {{.name = "a", .dtype = DType::kF32, .shape = {2}, .read = [&] { return one; }}};
  CHECK_THROWS_AS(io::save_safetensors(folder / "x", lying), ShapeError);
}

TEST_CASE("sources are read one at a time, once, and converted", "[io]") {
  const testing::ScratchFolder folder;
  int reads = 0;
  std::vector<io::TensorSource> sources;
  for (const char* name : {"a", "b", "c"}) {
    sources.push_back({.name = name, .dtype = DType::kBF16, .shape = {2}, .read = [&reads] {
                         ++reads;
                         return at::tensor({1.5f, 2.0f});
                       }});
  }
  io::save_safetensors(folder / "x", sources);
  CHECK(reads == 3);
  CHECK(same(io::load_safetensors(folder / "x").at("b"), at::tensor({1.5f, 2.0f}).to(at::kBFloat16)));
}

TEST_CASE("a file of the reference library is written again byte for byte", "[io]") {
  const auto path = testing::outside_data("fixtures/peft/base/model.safetensors");
  if (!path) return;
  const testing::ScratchFolder folder;
  const auto tensors = io::load_safetensors(*path);
  CHECK(tensors.at("model.embed_tokens.weight").sizes() == c10::IntArrayRef({128, 64}));
  io::save_safetensors(folder / "again", io::NamedTensors(tensors.begin(), tensors.end()));
  CHECK(read_all(folder / "again") == read_all(*path));
}
