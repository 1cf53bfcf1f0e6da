#include "lora/ops/quantized.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cmath>
#include <limits>

#include "lora/core/error.h"
#include "lora/io/safetensors.h"
#include "ops/cuda/pack_dequantize.h"
#include "support.h"

using namespace lora;
using lora::ops::QuantizedTensor;

namespace {

constexpr QuantizedType kNf4 = QuantizedType::kNf4, kFp4 = QuantizedType::kFp4, kInt8 = QuantizedType::kInt8;

/// The definition, number by number.
at::Tensor by_definition(const io::QuantizedParts& parts) {
  const int64_t numbers = parts.shape[0] * parts.shape[1];
  at::Tensor out = at::empty({numbers}, at::kFloat);
  for (int64_t i = 0; i < numbers; ++i) {
    const int64_t block = i / parts.scheme.block_size;
    volatile float scale = 0;
    if (parts.scheme.double_quantized) {
      scale = parts.nested_map[parts.absmax[block].item<uint8_t>()].item<float>() *
              parts.nested_absmax[block / parts.nested_block_size].item<float>();
      scale = scale + parts.nested_offset;
    } else {
      scale = parts.absmax[block].item<float>();
    }
    const auto byte = parts.codes[i / 2].item<uint8_t>();
    out[i] = parts.map[i % 2 == 0 ? byte >> 4 : byte & 15].item<float>() * scale;
  }
  return out.view(parts.shape);
}

at::Tensor without_padding(const at::Tensor& codes, int64_t numbers) {
  at::Tensor kept = codes.flatten().clone();
  if (numbers % 2 != 0) kept[-1] = kept[-1].item<uint8_t>() & 0xf0;
  return kept;
}

}  // namespace

TEST_CASE("quantize: the bytes of bitsandbytes, and its numbers", "[ops]") {
  const auto reference = io::load_safetensors(testing::reference_folder() / "peft/nf4/expected.safetensors");
  int cases = 0;
  for (const std::string weight : {"W", "Wodd"}) {
    for (const QuantizedType type : {kNf4, kFp4}) {
      for (const int64_t block : {64, 128}) {
        for (const bool nested : {false, true}) {
          const std::string name =
              weight + "." + std::string(name_of(type)) + ".b" + std::to_string(block) + (nested ? ".dq" : ".plain");
          if (!reference.contains(name + ".packed")) continue;
          INFO(name);
          ++cases;
          const auto quantized = QuantizedTensor::quantize(reference.at(weight), {type, block, nested});
          const auto& parts = *quantized.parts();
          const int64_t numbers = reference.at(weight).numel();
          CHECK(at::equal(without_padding(parts.codes, numbers), without_padding(reference.at(name + ".packed"), numbers)));
          CHECK(at::equal(parts.map, reference.at(name + ".quant_map")));
          CHECK(at::equal(parts.absmax, reference.at(name + ".absmax")));
          if (nested) {
            CHECK(at::equal(parts.nested_absmax, reference.at(name + ".nested_absmax")));
            CHECK(at::equal(parts.nested_map, reference.at(name + ".nested_quant_map")));
          }
          // The reference's numbers came from bitsandbytes' CPU kernel, which takes another block's scale where an even row is
          // shorter than a block; its own formula (backends/default/ops.py) does not.
          const bool is_sound = block <= 64 || weight != "W";
          const at::Tensor numbers_there = is_sound ? reference.at(name + ".dequant") : by_definition(parts);
          CHECK(at::equal(quantized.dequantize(at::kFloat), numbers_there));
        }
      }
    }
  }
  CHECK(cases == 12);
}

TEST_CASE("dequantize: every type and size is the definition, rounded once", "[ops]") {
  at::manual_seed(1);
  for (const auto& [rows, columns] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {3, 5}, {7, 33}, {64, 64}, {50, 96}, {5, 1000}}) {
    const at::Tensor weight = at::randn({rows, columns}) * 0.3;
    for (const QuantizationScheme scheme :
         {QuantizationScheme{kNf4, 64, false}, {kFp4, 32, true}, {kNf4, 256, true}, {kNf4, 4096, false}}) {
      INFO(rows << " x " << columns << ", blocks of " << scheme.block_size);
      const auto quantized = QuantizedTensor::quantize(weight, scheme);
      const at::Tensor expected = by_definition(*quantized.parts());
      for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) {
        CHECK(at::equal(quantized.dequantize(type), expected.to(type)));
      }
    }
  }
}

TEST_CASE("quantize: the nearest number of the map, for every block size", "[ops]") {
  at::manual_seed(2);
  const at::Tensor weight = at::randn({37, 301}).to(at::kBFloat16);
  for (const QuantizedType type : {kNf4, kFp4}) {
    for (int64_t block = 32; block <= 4096; block *= 2) {
      const auto quantized = QuantizedTensor::quantize(weight, {type, block, false});
      const auto& parts = *quantized.parts();
      CHECK(parts.dtype == DType::kBF16);
      const at::Tensor scale = parts.absmax.repeat_interleave(block).slice(0, 0, weight.numel());
      const at::Tensor y = weight.flatten().to(at::kFloat) / scale;
      const at::Tensor nearest = (y.unsqueeze(1) - parts.map.unsqueeze(0)).abs().amin(1);
      io::QuantizedParts unrounded = parts;
      unrounded.dtype = DType::kF32;
      const at::Tensor numbers = QuantizedTensor(unrounded).dequantize(at::kFloat);
      const at::Tensor found = (y - numbers.flatten() / scale).abs();
      CHECK((found - nearest).max().item<double>() < 1e-6);
      // As bitsandbytes has it: of the type that was quantised first, whatever they become then.
      const at::Tensor rounded = numbers.to(at::kBFloat16);
      for (const auto dtype : {at::kBFloat16, at::kFloat, at::kHalf, at::kDouble})
        CHECK(quantized.dequantize(dtype).equal(rounded.to(dtype)));
    }
  }
}

TEST_CASE("quantize: numbers beside the bounds go where bitsandbytes' arithmetic puts them", "[ops]") {
  // Whole blocks are multiplied by 1 / absmax and a short last one is divided, which differs in the last bit.
  at::manual_seed(6);
  const at::Tensor map = QuantizedTensor::quantize(at::ones({1, 1}), {}).parts()->map;
  const at::Tensor bounds = (map.slice(0, 0, -1) + map.slice(0, 1)) / 2;
  int64_t differing = 0;
  for (int trial = 0; trial < 200; ++trial) {
    const float scale = at::rand({1}).item<float>() + 0.01F;
    at::Tensor numbers = at::zeros({1, 64});
    numbers[0][0] = scale;
    for (int64_t k = 0; k < 15; ++k) {
      const float beside = bounds[k].item<float>() * scale;
      numbers[0][3 * k + 1] = std::nextafter(beside, -2.0F);
      numbers[0][3 * k + 2] = beside;
      numbers[0][3 * k + 3] = std::nextafter(beside, 2.0F);
    }
    const auto codes = [](const at::Tensor& weight) {
      const at::Tensor bytes = QuantizedTensor::quantize(weight, {}).parts()->codes.to(at::kLong);
      return at::stack({at::bitwise_right_shift(bytes, 4), at::bitwise_and(bytes, 15)}, 1).flatten().slice(0, 0, weight.numel());
    };
    const auto expected = [&](const at::Tensor& scaled) { return at::bucketize(scaled.flatten().clamp(-1, 1), bounds); };
    const at::Tensor whole = expected(numbers * (1.0 / at::full({1}, scale))), piece = numbers.slice(1, 0, 50).contiguous();
    const at::Tensor divided = expected(piece / at::full({1}, scale));
    CHECK(at::equal(codes(numbers), whole));
    CHECK(at::equal(codes(piece), divided));
    differing += (whole.slice(0, 0, 50) != divided).sum().item<int64_t>();
  }
  CHECK(differing > 0);
}

TEST_CASE("quantize: scales of many blocks have 8 bits, whatever the number of threads", "[ops]") {
  at::manual_seed(3);
  const at::Tensor weight = at::randn({1500, 2048}) * at::rand({1500, 1});
  const auto plain = QuantizedTensor::quantize(weight, {kNf4, 64, false}),
             nested = QuantizedTensor::quantize(weight, {kNf4, 64, true});
  CHECK(at::equal(plain.parts()->codes, nested.parts()->codes));
  const at::Tensor left = nested.parts()->nested_absmax.repeat_interleave(256).slice(0, 0, 48000);
  const at::Tensor scales =
      nested.parts()->nested_map.index({nested.parts()->absmax.to(at::kLong)}) * left + nested.parts()->nested_offset;
  // The widest gap of the map is 0.0141.
  CHECK(((scales - plain.parts()->absmax).abs() / left).max().item<double>() < 0.00704);
  const int threads = at::get_num_threads();
  at::set_num_threads(threads == 1 ? 2 : 1);
  const auto again = QuantizedTensor::quantize(weight, {kNf4, 64, true});
  CHECK(at::equal(again.parts()->codes, nested.parts()->codes));
  CHECK(at::equal(again.parts()->absmax, nested.parts()->absmax));
  CHECK(again.parts()->nested_offset == nested.parts()->nested_offset);
  CHECK(at::equal(again.dequantize(at::kBFloat16), nested.dequantize(at::kBFloat16)));
  for (int i = 0; i < 8; ++i) {  // sums in another order are equal now and then
    const at::Tensor other = at::randn({1100, 2048});
    const float with_others = QuantizedTensor::quantize(other, {kNf4, 64, true}).parts()->nested_offset;
    at::set_num_threads(threads);
    CHECK(QuantizedTensor::quantize(other, {kNf4, 64, true}).parts()->nested_offset == with_others);
    at::set_num_threads(threads == 1 ? 2 : 1);
  }
  at::set_num_threads(threads);
  CHECK(nested.bytes() == 1500 * 1024 + 48000 + 188 * 4 + (16 + 256) * 4);
}

TEST_CASE("quantize: int8 is 127ths of a row's largest magnitude", "[ops]") {
  at::manual_seed(4);
  at::Tensor weight = at::randn({9, 70});
  weight[4].zero_();
  const auto quantized = QuantizedTensor::quantize(weight, {.type = kInt8});
  const auto& parts = *quantized.parts();
  CHECK(at::equal(parts.absmax, weight.abs().amax(1)));
  for (int64_t row = 0; row < 9; ++row) {
    for (int64_t i = 0; i < 70; ++i) {
      const double exact = row == 4 ? 0 : 127.0 * weight[row][i].item<double>() / parts.absmax[row].item<double>();
      CHECK(std::abs(parts.codes[row][i].item<int8_t>() - exact) <= 0.5 + 1e-4);
    }
  }
  const at::Tensor expected = parts.codes.to(at::kFloat) * parts.absmax.unsqueeze(1) * (1.0F / 127.0F);
  for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble})
    CHECK(at::equal(quantized.dequantize(type), expected.to(type)));
  CHECK((expected - weight).abs().amax(1).le(parts.absmax / 254 + 1e-6).all().item<bool>());
}

TEST_CASE("quantize: blocks of zeros, tiny numbers, refused weights and schemes", "[ops]") {
  CHECK(at::equal(QuantizedTensor::quantize(at::zeros({3, 50}), {}).dequantize(at::kFloat), at::zeros({3, 50})));
  const at::Tensor tiny = at::full({2, 64}, 1e-40);
  CHECK((QuantizedTensor::quantize(tiny, {}).dequantize(at::kFloat) - tiny).abs().max().item<double>() <= 1e-40);
  at::Tensor bad = at::zeros({2, 64});
  for (const double value : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    bad[1][3] = value;
    CHECK_THROWS_AS(QuantizedTensor::quantize(bad, {}), ShapeError);
    CHECK_THROWS_AS(QuantizedTensor::quantize(bad, {.type = kInt8}), ShapeError);
  }
  CHECK_THROWS_AS(QuantizedTensor::quantize(at::zeros({4}), {}), ShapeError);
  CHECK_THROWS_AS(QuantizedTensor::quantize(at::zeros({4, 4}, at::kInt), {}), ShapeError);
  CHECK_THROWS_AS(QuantizedTensor::quantize(at::zeros({4, 4}), {kNf4, 48, false}), ConfigError);
  CHECK_THROWS_AS(QuantizedTensor::quantize(at::zeros({4, 4}), {kInt8, 64, true}), ConfigError);
  const auto quantized = QuantizedTensor::quantize(at::zeros({4, 4}), {});
  CHECK_THROWS_AS(quantized.dequantize_into(at::zeros({4, 5})), ShapeError);
  CHECK_THROWS_AS(quantized.dequantize_into(at::zeros({4, 4}).t().slice(0, 0, 4, 2)), ShapeError);
  CHECK_THROWS_AS(quantized.dequantize(at::kInt), ShapeError);
}

TEST_CASE("quantize: on the meta device the form alone", "[ops]") {
  for (const QuantizationScheme scheme : {QuantizationScheme{kNf4, 64, true}, {kFp4, 128, false}, {.type = kInt8}}) {
    const auto real = QuantizedTensor::quantize(at::zeros({70, 33}), scheme);
    const auto form = QuantizedTensor::quantize(at::empty({70, 33}, at::kMeta), scheme);
    CHECK(form.device().is_meta());
    CHECK(form.bytes() == real.bytes());
    CHECK(form.dequantize(at::kBFloat16).sizes() == at::IntArrayRef({70, 33}));
  }
}

namespace {

template <class T>
T* memory(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<T*>(const_cast<void*>(tensor.const_data_ptr())) : nullptr;
}

/// What the GPU's threads write, one after the other.
template <class T, int kPack>
at::Tensor by_packs(const io::QuantizedParts& parts) {
  at::Tensor out = at::empty(parts.shape, c10::CppTypeToScalarType<T>::value);
  const auto run = [&](const auto& program) {
    for (int64_t first = 0; first < out.numel(); first += kPack) program.template run<kPack>(first);
  };
  if (parts.scheme.type == kInt8) {
    run(ops::team::DequantizeEightBits<T>{memory<const int8_t>(parts.codes), memory<const float>(parts.absmax), parts.shape[1],
                                          memory<T>(out)});
    return out;
  }
  const bool nested = parts.scheme.double_quantized;
  run(ops::team::DequantizeFourBits<T>{memory<const uint8_t>(parts.codes), memory<const float>(parts.map),
                                       nested ? nullptr : memory<const float>(parts.absmax),
                                       nested ? memory<const uint8_t>(parts.absmax) : nullptr,
                                       memory<const float>(parts.nested_map), memory<const float>(parts.nested_absmax),
                                       parts.nested_offset, parts.scheme.block_size, parts.nested_block_size, memory<T>(out)});
  return out;
}

template <class T>
void check_packs(const QuantizedTensor& quantized, bool packs) {
  const at::Tensor expected = quantized.dequantize(c10::CppTypeToScalarType<T>::value);
  CHECK(at::equal(by_packs<T, 1>(*quantized.parts()), expected));
  if (packs) CHECK(at::equal(by_packs<T, ops::team::DequantizeFourBits<T>::kWidestPack>(*quantized.parts()), expected));
}

}  // namespace

TEST_CASE("dequantize: the GPU's arithmetic gives the CPU's bits", "[ops]") {
  at::manual_seed(5);
  for (const QuantizationScheme scheme :
       {QuantizationScheme{kNf4, 64, false}, {kNf4, 32, true}, {kFp4, 128, true}, {.type = kInt8}}) {
    for (const int64_t width : {7, 48, 320}) {
      const auto quantized = QuantizedTensor::quantize(at::randn({30, width}), scheme);
      const bool packs = width % 16 == 0;
      check_packs<c10::BFloat16>(quantized, packs);
      check_packs<c10::Half>(quantized, packs);
      check_packs<float>(quantized, packs);
      check_packs<double>(quantized, packs);
    }
  }
}
