// A weight in few bits computes what the plain weight that it stands for does.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/utils.h>

#include <functional>

#include "catch.h"
#include "gradcheck.h"
#include "lora/core/error.h"
#include "lora/nn/few_bits.h"
#include "lora/nn/linear_group.h"
#include "lora/nn/recompute.h"
#include "lora/ops/autocast.h"
#include "lora/ops/quantized.h"

using namespace lora;
using lora::ops::QuantizedTensor;

namespace {

constexpr QuantizationScheme kNf4{QuantizedType::kNf4, 64, true};

class LowRank : public nn::Adapter {
 public:
  LowRank(int64_t in, int64_t out) {
    a = register_parameter("a", at::randn({2, in}));
    b = register_parameter("b", at::randn({out, 2}));
  }
  at::Tensor delta(const at::Tensor& x) override {
    return at::linear(at::linear(x, a.to(x.scalar_type())), b.to(x.scalar_type())) * 0.5;
  }
  std::optional<nn::LowRankFactors> low_rank() const override { return nn::LowRankFactors{a, b, 0.5}; }
  at::Tensor weight_delta() const override { return (b.mm(a) * 0.5).detach(); }
  at::Tensor a, b;
};

/// A layer in few bits, and one that holds the numbers that they stand for.
struct Twins {
  nn::Linear bits{nullptr}, plain{nullptr};
};
Twins twins(int64_t in, int64_t out, at::ScalarType dtype, const QuantizationScheme& scheme = kNf4, bool bias = false) {
  const auto layer = [&] {
    nn::Linear made(nn::LinearOptions{in, out, bias, {.dtype = dtype}});
    made->weight.set_requires_grad(false);
    if (bias) made->bias.set_requires_grad(false);
    return made;
  };
  Twins pair{layer(), layer()};
  const auto quantized =
      QuantizedTensor::quantize(at::randn({out, in}).to(dtype == at::kDouble ? at::kFloat : dtype) * 0.1, scheme);
  pair.bits->quantize_weight(quantized);
  pair.plain->weight.set_data(quantized.dequantize(dtype));
  if (bias) pair.plain->bias.set_data(pair.bits->bias.detach().clone());
  return pair;
}

/// Output and gradient to x, which as in a model is no leaf (autocast would keep a leaf's cast for both layers).
template <class Layer>
std::pair<at::Tensor, at::Tensor> pass(const at::Tensor& input, Layer forward) {
  const at::Tensor x = input.clone().requires_grad_();
  const at::Tensor y = forward(x * 1);
  y.backward(at::ones_like(y) * 0.3);
  return {y.detach(), x.grad()};
}

}  // namespace

TEST_CASE("quantised Linear: the plain twin's output and gradient, and nothing is kept", "[nn]") {
  at::manual_seed(1);
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16, at::kDouble);
  const bool bias = GENERATE(false, true);
  for (const QuantizationScheme scheme :
       {kNf4, QuantizationScheme{QuantizedType::kFp4, 128, false}, {.type = QuantizedType::kInt8}}) {
    auto [bits, plain] = twins(48, 40, dtype, scheme, bias);
    CHECK(bits->weight_is_quantized());
    CHECK(bits->weight.sizes() == at::IntArrayRef({40, 48}));
    CHECK(bits->weight.scalar_type() == dtype);
    CHECK(bits->weight.isnan().all().item<bool>());
    CHECK_FALSE(bits->weight.requires_grad());
    const auto input = at::randn({2, 5, 48}).to(dtype);
    const auto found = pass(input, [&](const at::Tensor& x) { return bits->forward(x); });
    const auto expected = pass(input, [&](const at::Tensor& x) { return plain->forward(x); });
    CHECK(at::equal(found.first, expected.first));
    CHECK(at::equal(found.second, expected.second));
    CHECK(bits->weight_is_quantized());
    CHECK(at::equal(bits->weight_value(), plain->weight));
    CHECK(bits->weight_is_quantized());
  }
}

TEST_CASE("quantised Linear: the gradient to x by finite differences", "[nn]") {
  at::manual_seed(2);
  auto [bits, plain] = twins(9, 7, at::kDouble);
  check_gradients([&](const std::vector<at::Tensor>& inputs) { return bits->forward(inputs[0]); }, {random_double({3, 9})});
  auto other = twins(9, 5, at::kDouble, {QuantizedType::kFp4, 32, false});
  nn::LinearGroup group({bits, other.bits});
  bits->attach("a", std::make_shared<LowRank>(9, 7));
  bits->slot.set_active({"a"});
  bits->to(at::kDouble);
  bits->quantize_weight(QuantizedTensor::quantize(plain->weight.detach(), kNf4));
  auto adapter = std::dynamic_pointer_cast<LowRank>(bits->slot.find("a"));
  REQUIRE(adapter);
  check_gradients([&](const std::vector<at::Tensor>& inputs) { return group.forward(inputs[0], {}); }, {random_double({3, 9})});
  CHECK(bits->weight_is_quantized());
  CHECK(other.bits->weight_is_quantized());
}

TEST_CASE("quantised group: what a held one gives, packed or not, adapted, at every number of rows", "[nn]") {
  at::manual_seed(3);
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16);
  const auto amp = GENERATE(at::kFloat, at::kBFloat16);
  nn::FastPaths fast;
  fast.packed_weights = GENERATE(true, false);
  fast.joined = GENERATE(true, false);
  Twins first = twins(512, 512, dtype), second = twins(512, 256, dtype, kNf4, true);
  nn::LinearGroup bits({first.bits, second.bits}), plain({first.plain, second.plain});
  const auto adapter = std::make_shared<LowRank>(512, 256);
  for (nn::Linear& layer : {std::ref(second.bits), std::ref(second.plain)}) {
    layer->attach("a", adapter);
    layer->slot.set_active({"a"});
  }
  const auto run = [&](nn::LinearGroup& group, const at::Tensor& input) {
    const AutocastGuard autocast(at::kCPU, amp);
    return pass(input, [&](const at::Tensor& x) { return group.forward(x, fast); });
  };
  const auto infer = [&](nn::LinearGroup& group, const at::Tensor& input) {
    const at::NoGradGuard no_grad;
    const AutocastGuard autocast(at::kCPU, amp);
    return group.forward(input, fast);
  };
  // One product adds in another order than one per layer, and bf16 rounds each.
  const auto is_near = [&](const at::Tensor& a, const at::Tensor& b) {
    const double tolerance = dtype == at::kBFloat16 || amp == at::kBFloat16 ? 0.01 : 2e-6;
    return (a - b).abs().max().item<double>() <= tolerance * b.abs().max().item<double>();
  };
  for (const int64_t rows : {1, 3, 96}) {
    INFO(rows << " rows, " << dtype << " under " << amp << ", packed " << fast.packed_weights << ", joined " << fast.joined);
    const auto input = at::randn({rows, 512}).to(dtype);
    CHECK(is_near(infer(bits, input), infer(plain, input)));
    const auto found = run(bits, input), expected = run(plain, input);
    CHECK(is_near(found.first, expected.first));
    CHECK(is_near(found.second, expected.second));
    CHECK(is_near(infer(bits, input), infer(plain, input)));
  }
  CHECK(first.bits->weight_is_quantized());
  CHECK(second.bits->weight_is_quantized());
  if (amp == at::kFloat && fast.joined) {
    const at::NoGradGuard no_grad;
    CHECK(bits.keeps_rows_apart(dtype, fast));
  }
}

TEST_CASE("quantised group: few rows are multiplied slab by slab, wherever blocks begin", "[nn]") {
  at::manual_seed(8);
  const at::NoGradGuard no_grad;
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16);
  for (const auto& [in, out] : std::vector<std::pair<int64_t, int64_t>>{{33, 2100}, {96, 1500}, {1000, 200}, {4096, 40}}) {
    for (const QuantizationScheme scheme :
         {kNf4, QuantizationScheme{QuantizedType::kFp4, 4096, false}, {.type = QuantizedType::kInt8}}) {
      INFO(out << " x " << in << " " << dtype);
      const Twins first = twins(in, out, dtype, scheme), second = twins(in, 7, dtype, scheme);
      nn::LinearGroup bits({first.bits, second.bits}), plain({first.plain, second.plain});
      for (const int64_t rows : {1, 4}) {
        const auto input = at::randn({rows, in}).to(dtype);
        CHECK(at::equal(bits.forward(input, {}), plain.forward(input, {})));
      }
    }
  }
}

TEST_CASE("quantised Linear: a group with a plain layer beside it", "[nn]") {
  at::manual_seed(4);
  const Twins first = twins(64, 32, at::kFloat), second = twins(64, 48, at::kFloat);
  nn::LinearGroup mixed({first.bits, second.plain}), plain({first.plain, second.plain});
  const auto input = at::randn({10, 64});
  const auto found = pass(input, [&](const at::Tensor& x) { return mixed.forward(x, {}); });
  const auto expected = pass(input, [&](const at::Tensor& x) { return plain.forward(x, {}); });
  CHECK(at::allclose(found.first, expected.first, 1e-5, 1e-6));
  CHECK(at::allclose(found.second, expected.second, 1e-5, 1e-6));
}

TEST_CASE("quantised Linear: recomputed layers give the same", "[nn]") {
  at::manual_seed(5);
  auto [bits, plain] = twins(64, 64, at::kFloat);
  const auto input = at::randn({10, 64});
  const auto found = pass(input, [&bits = bits](const at::Tensor& x) {
    return nn::recomputed(
        [&](const std::vector<at::Tensor>& given) { return std::vector<at::Tensor>{bits->forward(given[0]).tanh()}; }, {x})[0];
  });
  const auto expected = pass(input, [&plain = plain](const at::Tensor& x) { return plain->forward(x).tanh(); });
  CHECK(at::equal(found.first, expected.first));
  CHECK(at::equal(found.second, expected.second));
}

TEST_CASE("quantised Linear: whoever changes the weight has the plain one", "[nn]") {
  at::manual_seed(6);
  auto [bits, plain] = twins(64, 32, at::kBFloat16);
  const at::Tensor numbers = plain->weight.detach().clone();
  SECTION("by restoring") {
    bits->restore_weight();
    CHECK(at::equal(bits->weight, numbers));
  }
  SECTION("by merging") {
    const auto adapter = std::make_shared<LowRank>(64, 32);
    bits->attach("a", adapter);
    bits->slot.set_active({"a"});
    bits->merge();
    CHECK(at::equal(bits->weight, (numbers.to(at::kFloat) + adapter->weight_delta()).to(at::kBFloat16)));
  }
  SECTION("by another type") {
    bits->to(at::kFloat);
    CHECK(at::equal(bits->weight, numbers.to(at::kFloat)));
  }
  CHECK_FALSE(bits->weight_is_quantized());
  CHECK_FALSE(bits->weight_is_released());
  CHECK(bits->quantized_weight() == nullptr);
}

TEST_CASE("quantised Linear: who only reads gets a copy; a move keeps the bits", "[nn]") {
  struct Model : torch::nn::Module {};
  auto [bits, plain] = twins(64, 32, at::kBFloat16);
  Model model;
  model.register_module("layer", bits);
  const auto readable = nn::readable_parameters(model);
  REQUIRE(readable.size() == 1);
  CHECK(readable[0].name == "layer.weight");
  CHECK(at::equal(readable[0].read(), plain->weight));
  const auto few_bits = nn::few_bits_of(model);
  CHECK(few_bits.scheme == kNf4);
  CHECK(few_bits.layers == 1);
  CHECK(few_bits.bytes == bits->quantized_weight()->bytes());
  CHECK(few_bits.plain_bytes == 64 * 32 * 2);
  CHECK(bits->weight_is_quantized());
  model.to(at::Device(at::kCPU));
  CHECK(bits->weight_is_quantized());
}

TEST_CASE("quantised Linear: fresh layers may be made so; wrong shapes are refused", "[nn]") {
  at::manual_seed(7);
  nn::Linear fresh(nn::LinearOptions{64, 32, true, {.quantization = kNf4}});
  at::manual_seed(7);
  nn::Linear plain(nn::LinearOptions{64, 32, true, {}});
  CHECK(fresh->weight_is_quantized());
  CHECK(at::equal(fresh->weight_value(), QuantizedTensor::quantize(plain->weight, kNf4).dequantize(at::kFloat)));
  CHECK(at::equal(fresh->bias, plain->bias));
  CHECK_THROWS_AS(plain->quantize_weight(QuantizedTensor::quantize(at::zeros({64, 32}), kNf4)), ShapeError);
  plain->quantize_weight(QuantizedTensor::quantize(at::zeros({32, 64}), kNf4));
  plain->quantize_weight(QuantizedTensor::quantize(at::ones({32, 64}), kNf4));  // others in their place
  CHECK(at::equal(plain->weight_value(), at::ones({32, 64})));
}
