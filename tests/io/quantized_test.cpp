#include "lora/io/quantized.h"

#include <ATen/ATen.h>

#include <map>

#include "lora/core/error.h"
#include "lora/formats/quantization.h"
#include "support.h"

using namespace lora;
using lora::testing::message_of;
using lora::testing::ScratchFolder;

namespace {

using Tensors = std::map<std::string, at::Tensor>;

const std::string kName = "model.layers.0.mlp.down_proj.weight";
const std::string kState = kName + ".quant_state.bitsandbytes__nf4";

/// A folder with these tensors as a model's only file.
io::ModelFiles saved(const ScratchFolder& folder, const Tensors& tensors) {
  io::save_safetensors(folder / "model.safetensors", io::NamedTensors(tensors.begin(), tensors.end()));
  return io::ModelFiles(folder.path());
}

Tensors bitsandbytes_file(const std::string& name) {
  return io::load_safetensors(testing::reference_folder() / "peft" / name / "model.safetensors");
}

at::Tensor text_tensor(const std::string& text) { return at::tensor(std::vector<uint8_t>(text.begin(), text.end()), at::kByte); }

Tensors int8_file() {
  return {{"a.weight", at::arange(-10, 10, at::kChar).view({4, 5})},
          {"a.SCB", at::rand({4})},
          {"a.weight_format", at::zeros({}, at::kByte)}};
}

/// Reading must fail cleanly, naming `about`.
void refuse(const Tensors& tensors, const std::string& about, const std::string& name = kName) {
  INFO(about);
  const ScratchFolder folder;
  const auto files = saved(folder, tensors);
  const auto text = message_of<FormatError>([&] {
    io::companions_of(files, name);
    io::stored_weight(files, name);
    io::read_quantized(files, name);
  });
  CHECK(text.find(about) != std::string::npos);
}

}  // namespace

TEST_CASE("quantized files: bitsandbytes' are read, and written again to the byte", "[io]") {
  for (const std::string fixture : {"bnb4", "bnb4_dq"}) {
    INFO(fixture);
    const io::ModelFiles files(testing::reference_folder() / "peft" / fixture);
    const bool nested = fixture == "bnb4_dq";
    const auto stored = io::stored_weight(files, kName);
    CHECK(stored.shape == std::vector<int64_t>{64, 192});
    CHECK(stored.dtype == DType::kF32);
    CHECK(stored.scheme == QuantizationScheme{QuantizedType::kNf4, 64, nested});
    CHECK_FALSE(io::stored_weight(files, "lm_head.weight").scheme);
    CHECK(io::companions_of(files, kName).size() == (nested ? 5 : 3));
    CHECK(io::companions_of(files, "lm_head.weight").empty());

    const auto parts = std::make_shared<const io::QuantizedParts>(io::read_quantized(files, kName));
    const auto sources = io::quantized_sources(kName, parts);
    CHECK(sources.size() == (nested ? 6 : 4));
    for (const auto& source : sources) {
      INFO(source.name);
      REQUIRE(files.contains(source.name));
      const at::Tensor theirs = files.read(source.name);
      CHECK(source.shape == theirs.sizes().vec());
      CHECK(at::equal(source.read(), theirs));
    }
  }
}

TEST_CASE("quantized files: LLM.int8's are read and written", "[io]") {
  const ScratchFolder folder;
  const auto tensors = int8_file();
  const auto files = saved(folder, tensors);
  CHECK(io::stored_weight(files, "a.weight").scheme == QuantizationScheme{.type = QuantizedType::kInt8});
  CHECK(io::companions_of(files, "a.weight") == std::vector<std::string>{"a.SCB", "a.weight_format"});
  const auto parts = std::make_shared<const io::QuantizedParts>(io::read_quantized(files, "a.weight"));
  CHECK(at::equal(parts->codes, tensors.at("a.weight")));
  CHECK(at::equal(parts->absmax, tensors.at("a.SCB")));
  for (const auto& source : io::quantized_sources("a.weight", parts)) CHECK(at::equal(source.read(), tensors.at(source.name)));
}

TEST_CASE("quantized files: codes may be stored as another type", "[io]") {
  auto tensors = bitsandbytes_file("bnb4");
  const at::Tensor codes = tensors.at(kName).flatten();
  tensors[kName] = codes.view(at::kBFloat16).unsqueeze(1);
  const ScratchFolder folder;
  CHECK(at::equal(io::read_quantized(saved(folder, tensors), kName).codes, codes));
}

TEST_CASE("quantized files: tensors that lie are errors that name them", "[io]") {
  const auto with = [](const std::string& name, const at::Tensor& tensor, const std::string& fixture = "bnb4_dq") {
    auto tensors = bitsandbytes_file(fixture);
    tensors[name] = tensor;
    return tensors;
  };
  for (const char* part : {".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"}) {
    auto tensors = bitsandbytes_file("bnb4_dq");
    tensors.erase(kName + part);
    refuse(tensors, kName + part);
    refuse(with(kName + part, at::zeros({3})), kName + part);
    refuse(with(kName + part, at::zeros({0})), kName + part);
  }
  refuse(with(kName, at::zeros({6143, 1}, at::kByte)), "6144");
  refuse(with(kName, at::zeros({6145, 1}, at::kByte)), "6144");
  refuse(with(kName + ".absmax", at::zeros({192})), "U8");
  refuse(with(kName + ".absmax", at::zeros({192}, at::kByte), "bnb4"), "F32");
  refuse(with(kName + ".quant_map", at::full({16}, std::numeric_limits<double>::quiet_NaN())), "finite");
  refuse(with(kName + ".nested_quant_map", at::full({256}, std::numeric_limits<double>::infinity())), "finite");
  refuse(with(kName + ".quant_state.bitsandbytes__fp4", text_tensor("{}")), "two");
  refuse(with(kState, text_tensor("")), kState);
  refuse(with(kState, text_tensor("\xff\xfe")), kState);
  refuse(with(kState, at::zeros({3, 4}, at::kByte)), kState);
  refuse(with(kState, at::zeros({167})), kState);
  refuse(with(kState, at::zeros({1 << 20}, at::kByte)), kState);
  formats::QuantState state{QuantizedType::kNf4, 64, DType::kF32, {64, 192}, formats::QuantState::Nested{}};
  const auto lie = [&](auto change, const std::string& about) {
    auto changed = state;
    change(changed);
    refuse(with(kState, text_tensor(formats::write_quant_state(changed))), about);
  };
  lie([](auto& s) { s.type = QuantizedType::kFp4; }, "fp4");
  lie([](auto& s) { s.shape = {64, 193}; }, kName);
  lie([](auto& s) { s.shape = {int64_t{1} << 31, int64_t{1} << 31}; }, kName);
  lie([](auto& s) { s.block_size = 32; }, kName + ".absmax");
  lie([](auto& s) { s.nested->block_size = 32; }, kName + ".nested_absmax");
  lie([](auto& s) { s.nested.reset(); }, kName + ".absmax");
  refuse({{kName, at::zeros({4, 4})}}, "plain");

  auto tensors = int8_file();
  tensors["a.SCB"] = at::rand({5});
  refuse(tensors, "a.SCB", "a.weight");
  tensors["a.SCB"] = at::rand({4}, at::kDouble);
  refuse(tensors, "a.SCB", "a.weight");
  tensors = int8_file();
  tensors["a.weight_format"] = at::ones({}, at::kByte);
  refuse(tensors, "a.weight_format", "a.weight");
  tensors = int8_file();
  tensors["a.weight"] = at::zeros({4}, at::kChar);
  refuse(tensors, "a.weight", "a.weight");
}
