#include "lora/adapters/lora.h"

#include <torch/utils.h>

#include <cmath>
#include <functional>

#include "adapters/fake_llama.h"
#include "lora/core/error.h"
#include "lora/ops/device.h"
#include "support.h"

using namespace lora;
using testing::difference;
using testing::message_of;

namespace {

nn::LinearLayout layout(int64_t in, int64_t out) { return {nn::LinearLayout::Cut::kReplicated, in, out, 0, 1}; }

/// Largest difference between autograd's gradient of `loss` in `input` and central differences.
double gradient_error(const std::function<at::Tensor()>& loss, at::Tensor input) {
  if (input.grad().defined()) input.mutable_grad().zero_();
  loss().backward();
  const auto analytic = input.grad().clone();
  const torch::NoGradGuard no_grad;
  auto flat = input.view({-1});
  auto numeric = at::empty_like(flat);
  constexpr double kStep = 1e-6;
  for (int64_t i = 0; i < flat.numel(); ++i) {
    const double value = flat[i].item<double>();
    flat[i].fill_(value + kStep);
    const double above = loss().item<double>();
    flat[i].fill_(value - kStep);
    const double below = loss().item<double>();
    flat[i].fill_(value);
    numeric[i].fill_((above - below) / (2 * kStep));
  }
  return difference(analytic.view({-1}), numeric);
}

}  // namespace

TEST_CASE("the default init is uniform A within 1/sqrt(in) and zero B", "[adapters]") {
  const LoraLinear lora(layout(400, 30), 16, 8, {});
  const double bound = 1 / std::sqrt(400.0);
  CHECK(lora.lora_A.sizes() == at::IntArrayRef({16, 400}));
  CHECK(lora.lora_B.sizes() == at::IntArrayRef({30, 16}));
  CHECK(lora.lora_A.scalar_type() == at::kFloat);
  CHECK(lora.lora_A.abs().max().item<double>() <= bound);
  CHECK(lora.lora_A.max().item<double>() > 0.99 * bound);
  CHECK(lora.lora_A.min().item<double>() < -0.99 * bound);
  // Standard deviation of a uniform distribution; 6400 draws.
  CHECK(lora.lora_A.std().item<double>() == Approx(bound / std::sqrt(3.0)).epsilon(0.03));
  CHECK(lora.lora_B.count_nonzero().item<int64_t>() == 0);
  CHECK(lora.weight_delta().count_nonzero().item<int64_t>() == 0);
}

TEST_CASE("the other inits have PEFT's distributions", "[adapters]") {
  const LoraLinear gaussian(layout(400, 30), 16, 8, {.init = "gaussian"});
  CHECK(gaussian.lora_A.std().item<double>() == Approx(1.0 / 16).epsilon(0.04));
  CHECK(gaussian.lora_A.abs().max().item<double>() > 2.5 / 16);
  CHECK(gaussian.lora_B.count_nonzero().item<int64_t>() == 0);

  const LoraLinear both(layout(400, 300), 16, 8, {.init = "false"});
  CHECK(both.lora_B.abs().max().item<double>() == Approx(0.25).epsilon(0.01));
  CHECK(both.lora_A.abs().max().item<double>() == Approx(0.05).epsilon(0.01));

  // Rows of an orthogonal Q are orthonormal, even ones to odd ones: B A has no part of Q in common,
  // so A B' = 0 over the rank.
  const LoraLinear orthogonal(layout(64, 48), 8, 8, {.init = "orthogonal"});
  CHECK(orthogonal.lora_B.count_nonzero().item<int64_t>() > 0);
  CHECK(orthogonal.weight_delta().abs().max().item<double>() < 1e-6);
  CHECK(orthogonal.lora_A.std().item<double>() == Approx(0.1 * std::sqrt(0.5)).epsilon(0.2));
}

TEST_CASE("one seed gives one adapter", "[adapters]") {
  seed_generators(3);
  const LoraLinear first(layout(20, 10), 4, 8, {});
  seed_generators(3);
  const LoraLinear second(layout(20, 10), 4, 8, {});
  CHECK(at::equal(first.lora_A, second.lora_A));
}

TEST_CASE("the scale is alpha over r or over its root", "[adapters]") {
  CHECK(LoraLinear(layout(4, 4), 16, 8, {}).scale() == 0.5);
  CHECK(LoraLinear(layout(4, 4), 16, 8, {.rank_stabilized = true}).scale() == 2);
  CHECK(LoraEmbedding({4, 4}, 16, 8, {.rank_stabilized = true}).scale() == 2);
}

TEST_CASE("impossible options are refused", "[adapters]") {
  const auto make = [](int64_t rank, double alpha, const LoraOptions& options) {
    return [=] { LoraLinear(layout(4, 4), rank, alpha, options); };
  };
  CHECK(message_of<ConfigError>(make(0, 8, {})).find("r must be at least 1; found 0") != std::string::npos);
  message_of<ConfigError>(make(4, 8, {.dropout = 1}));
  message_of<ConfigError>(make(4, 8, {.dropout = -0.1}));
  message_of<ConfigError>(make(4, 8, {.dropout = std::nan("")}));
  message_of<ConfigError>(make(4, INFINITY, {}));
  message_of<ConfigError>(make(3, 8, {.init = "orthogonal"}));
  CHECK(message_of<ConfigError>(make(4, 8, {.init = "corda"})).find("corda") != std::string::npos);
  message_of<ConfigError>([] { LoraEmbedding({4, 4}, 0, 8, {}); });
}

TEST_CASE("a linear's forward delta and weight delta are one update", "[adapters]") {
  LoraLinear lora(layout(20, 12), 4, 6, {.init = "false"});
  const auto x = at::randn({3, 5, 20});
  const auto expected = 1.5 * x.matmul(lora.lora_A.t()).matmul(lora.lora_B.t());
  CHECK(difference(lora.delta(x), expected) < 1e-6);
  CHECK(difference(lora.delta(x), x.matmul(lora.weight_delta().t())) < 1e-6);
}

TEST_CASE("an embedding's forward delta and weight delta are one update", "[adapters]") {
  LoraEmbedding lora({11, 6}, 3, 6, {.init = "false"});
  CHECK(lora.lora_embedding_A.sizes() == at::IntArrayRef({3, 11}));
  CHECK(lora.lora_embedding_B.sizes() == at::IntArrayRef({6, 3}));
  const auto ids = at::tensor({0, 10, 3, 3}, at::kLong).view({2, 2});
  CHECK(lora.weight_delta().sizes() == at::IntArrayRef({11, 6}));
  CHECK(lora.delta(ids).sizes() == at::IntArrayRef({2, 2, 6}));
  CHECK(difference(lora.delta(ids), at::embedding(lora.weight_delta(), ids)) < 1e-6);
  const auto row = 2 * lora.lora_embedding_B.mv(lora.lora_embedding_A.select(1, 10));
  CHECK(difference(lora.delta(ids)[0][1], row) < 1e-6);
}

TEST_CASE("a fresh embedding adapter has zero A and normal B", "[adapters]") {
  const LoraEmbedding lora({50, 400}, 16, 8, {});
  CHECK(lora.lora_embedding_A.count_nonzero().item<int64_t>() == 0);
  CHECK(lora.lora_embedding_B.std().item<double>() == Approx(1).epsilon(0.03));
}

TEST_CASE("weight deltas are fp32 for half factors and double for double ones", "[adapters]") {
  LoraLinear lora(layout(20, 12), 4, 6, {.init = "false"});
  lora.to(at::kBFloat16);
  CHECK(lora.weight_delta().scalar_type() == at::kFloat);
  const auto exact = 1.5 * lora.lora_B.to(at::kDouble).mm(lora.lora_A.to(at::kDouble));
  CHECK(difference(lora.weight_delta(), exact) < 1e-6);
  lora.to(at::kDouble);
  CHECK(lora.weight_delta().scalar_type() == at::kDouble);
}

TEST_CASE("dropout acts on the input, scaled, in training only", "[adapters]") {
  LoraLinear lora(layout(1000, 2), 1, 1, {.dropout = 0.25, .init = "false"});
  {
    const torch::NoGradGuard no_grad;
    lora.lora_A.fill_(1);
    lora.lora_B.fill_(1);
  }
  const auto x = at::ones({40, 1000});
  lora.train();
  const auto sums = lora.delta(x);
  // Every row is (number kept) / 0.75 of 1000 inputs: binomial with mean 1000 and deviation 18.
  CHECK(sums.mean().item<double>() == Approx(1000).epsilon(0.02));
  CHECK(sums.select(1, 0).std().item<double>() == Approx(18.3).epsilon(0.5));
  CHECK(difference((sums * 0.75).round(), sums * 0.75) < 1e-2);
  CHECK(difference(sums.select(1, 0), sums.select(1, 1)) == 0);
  lora.eval();
  CHECK(difference(lora.delta(x), at::full({40, 2}, 1000.0)) < 1e-2);
}

TEST_CASE("without dropout no random number is drawn", "[adapters]") {
  LoraLinear lora(layout(8, 8), 2, 1, {});
  const auto before = generator_state(at::kCPU);
  lora.train();
  lora.delta(at::ones({3, 8}));
  CHECK(at::equal(before, generator_state(at::kCPU)));
}

TEST_CASE("gradients of a linear adapter match finite differences", "[adapters]") {
  const double dropout = GENERATE(0.0, 0.4);
  seed_generators(11);
  LoraLinear lora(layout(5, 4), 2, 3, {.dropout = dropout, .init = "false"});
  lora.to(at::kDouble);
  lora.train();
  auto x = at::randn({3, 5}, at::kDouble).set_requires_grad(true);
  const auto weights = at::randn({3, 4}, at::kDouble);
  const auto loss = [&] {
    seed_generators(5);  // the same mask in every evaluation
    return (lora.delta(x).square() * weights).sum();
  };
  CHECK(gradient_error(loss, lora.lora_A) < 1e-7);
  CHECK(gradient_error(loss, lora.lora_B) < 1e-7);
  CHECK(gradient_error(loss, x) < 1e-7);
}

TEST_CASE("gradients of an embedding adapter match finite differences", "[adapters]") {
  seed_generators(12);
  LoraEmbedding lora({7, 4}, 2, 3, {.init = "false"});
  lora.to(at::kDouble);
  const auto ids = at::tensor({1, 6, 6, 0}, at::kLong);
  const auto weights = at::randn({4, 4}, at::kDouble);
  const auto loss = [&] { return (lora.delta(ids).square() * weights).sum(); };
  CHECK(gradient_error(loss, lora.lora_embedding_A) < 1e-7);
  CHECK(gradient_error(loss, lora.lora_embedding_B) < 1e-7);
}

TEST_CASE("with B at zero only B gets a gradient", "[adapters]") {
  LoraLinear lora(layout(5, 4), 2, 3, {});
  lora.delta(at::randn({3, 5})).sum().backward();
  CHECK(lora.lora_A.grad().count_nonzero().item<int64_t>() == 0);
  CHECK(lora.lora_B.grad().count_nonzero().item<int64_t>() == 8);
}

TEST_CASE("pieces of a cut layer are pieces of the whole adapter", "[adapters]") {
  using Cut = nn::LinearLayout::Cut;
  const auto make = [](Cut cut, int64_t rank, int64_t size) {
    seed_generators(9);
    return LoraLinear({cut, 8, 6, rank, size}, 2, 4, {.init = "false"});
  };
  const auto whole = make(Cut::kReplicated, 0, 1);
  const auto column = make(Cut::kColumn, 1, 2);
  CHECK(at::equal(column.lora_A, whole.lora_A));
  CHECK(at::equal(column.lora_B, whole.lora_B.slice(0, 3, 6)));
  const auto row = make(Cut::kRow, 1, 4);
  CHECK(at::equal(row.lora_A, whole.lora_A.slice(1, 2, 4)));
  CHECK(at::equal(row.lora_B, whole.lora_B));
}
