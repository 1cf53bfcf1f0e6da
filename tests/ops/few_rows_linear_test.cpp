#include "ops/few_rows_linear.h"

#include <ATen/ATen.h>

#include "catch.h"
#include "ops/rows.h"

using namespace lora;

namespace {

/// Numbers that every type holds exactly.
at::Tensor draw(at::IntArrayRef sizes) { return at::randn(sizes).to(at::kBFloat16).to(at::kDouble); }

struct Layers {
  at::Tensor x;
  ops::FrozenWeights weights;
  std::vector<ops::LowRankUpdate> updates;
};

/// Two layers, the first with one update, the second with two. The kernels take 4 or 8 outputs at a time and the rest singly.
constexpr int64_t kFirst = 19, kSecond = 9;
Layers layers_of(int64_t rows, int64_t inputs, bool with_bias, bool with_updates) {
  Layers drawn{
      draw({rows, inputs}), {.plain = {draw({kFirst, inputs}), draw({kSecond, inputs})}, .outputs = {kFirst, kSecond}}, {}};
  if (with_bias) drawn.weights.biases = {draw({kFirst}), draw({kSecond})};
  if (with_updates) {
    drawn.updates = {{draw({8, inputs}), draw({kFirst, 8}), 0.5, 0},
                     {draw({16, inputs}), draw({kSecond, 16}), 2, 1},
                     {draw({3, inputs}), draw({kSecond, 3}), 1, 1}};
  }
  return drawn;
}

at::Tensor expected_of(const Layers& layers) {
  std::vector<at::Tensor> parts;
  for (size_t i = 0; i < 2; ++i) {
    at::Tensor y = layers.x.matmul(layers.weights.plain[i].t());
    if (!layers.weights.biases.empty()) y = y + layers.weights.biases[i];
    for (const auto& update : layers.updates) {
      if (update.layer == i) y = y + layers.x.matmul(update.a_RI.t()).matmul(update.b_OR.t()) * update.scale;
    }
    parts.push_back(y);
  }
  return at::cat(parts, 1);
}

/// Factors are fp32 on any base but one in double.
Layers in_type(Layers layers, at::ScalarType type) {
  const auto wide = ops::rows::wide_type(type);
  layers.x = layers.x.to(type);
  for (auto& weight : layers.weights.plain) weight = weight.to(type);
  for (auto& bias : layers.weights.biases) bias = bias.to(type);
  for (auto& update : layers.updates) update.a_RI = update.a_RI.to(wide), update.b_OR = update.b_OR.to(wide);
  return layers;
}

}  // namespace

TEST_CASE("few_rows_linear: equals the products in double, biases and updates included", "[ops]") {
  at::manual_seed(41);
  const at::NoGradGuard no_grad;
  for (const int64_t inputs : {1, 15, 16, 33, 64, 100}) {
    for (const int64_t rows : {1, 2, 3, 4}) {
      for (const auto& [with_bias, with_updates] : {std::pair{false, false}, {true, false}, {false, true}, {true, true}}) {
        const Layers drawn = layers_of(rows, inputs, with_bias, with_updates);
        const at::Tensor expected = expected_of(drawn);
        for (const auto& [type, tolerance] : {std::pair{at::kDouble, 1e-13}, {at::kFloat, 1e-5}, {at::kBFloat16, 0.005}}) {
          INFO(rows << " rows of " << inputs << " in " << c10::toString(type) << (with_bias ? ", biases" : "")
                    << (with_updates ? ", updates" : ""));
          const Layers layers = in_type(drawn, type);
          const at::Tensor y = ops::few_rows_linear(layers.x, layers.weights, layers.updates);
          CHECK(y.scalar_type() == type);
          CHECK((y.to(at::kDouble) - expected).abs().max().item<double>() <= tolerance * expected.abs().max().item<double>());
        }
      }
    }
  }
}

TEST_CASE("few_rows_linear: a row does not depend on those beside it", "[ops]") {
  at::manual_seed(42);
  const at::NoGradGuard no_grad;
  for (const int64_t inputs : {5, 31, 48, 768, 777}) {
    for (const auto type : {at::kDouble, at::kFloat, at::kBFloat16}) {
      INFO(inputs << " inputs in " << c10::toString(type));
      const Layers layers = in_type(layers_of(4, inputs, true, true), type);
      const auto of = [&](const at::Tensor& x) { return ops::few_rows_linear(x, layers.weights, layers.updates); };
      for (int64_t first = 0; first < 4; ++first) {
        for (int64_t count = 2; first + count <= 4; ++count) {
          const at::Tensor together = of(layers.x.narrow(0, first, count));
          for (int64_t row = 0; row < count; ++row)
            CHECK(at::equal(together.narrow(0, row, 1), of(layers.x.narrow(0, first + row, 1))));
        }
      }
    }
  }
}

TEST_CASE("few_rows_linear: inputs and factors of any layout", "[ops]") {
  at::manual_seed(44);
  const at::NoGradGuard no_grad;
  const auto turned = [](const at::Tensor& x) { return x.t().contiguous().t(); };
  for (const auto type : {at::kDouble, at::kBFloat16}) {
    const Layers plain = in_type(layers_of(3, 40, true, true), type);
    Layers strided = plain;
    strided.x = turned(strided.x);
    for (auto& update : strided.updates) update.a_RI = turned(update.a_RI), update.b_OR = turned(update.b_OR);
    CHECK(at::equal(ops::few_rows_linear(strided.x, strided.weights, strided.updates),
                    ops::few_rows_linear(plain.x, plain.weights, plain.updates)));
  }
}

TEST_CASE("few_rows_linear: shapes stay, and weights may be brought", "[ops]") {
  at::manual_seed(43);
  const at::NoGradGuard no_grad;
  Layers layers = layers_of(4, 6, false, false);
  layers.weights.bring = [plain = layers.weights.plain] { return plain; };
  layers.weights.plain.clear();
  CHECK(ops::few_rows_linear(layers.x.view({2, 2, 6}), layers.weights, {}).sizes() == at::IntArrayRef({2, 2, kFirst + kSecond}));
}
