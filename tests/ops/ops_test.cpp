#include "lora/ops/ops.h"

#include <ATen/ATen.h>
#include <torch/utils.h>

#include "catch.h"
#include "gradcheck.h"
#include "lora/ops/autocast.h"

using namespace lora;

namespace {

double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

}  // namespace

TEST_CASE("lora_delta: backward equals finite differences", "[ops]") {
  at::manual_seed(1);
  const auto x = random_double({2, 3, 5}), a = random_double({2, 5}), b = random_double({4, 2});
  check_gradients([](const auto& in) { return ops::lora_delta(in[0], in[1], in[2], 0.7); }, {x, a, b});
}

TEST_CASE("lora_delta: backward with dropout equals finite differences", "[ops]") {
  at::manual_seed(2);
  const auto x = random_double({3, 5}), a = random_double({2, 5}), b = random_double({4, 2});
  const auto mask = at::bernoulli(at::full({3, 5}, 0.6, at::kDouble)) / 0.6;
  check_gradients([&](const auto& in) { return ops::lora_delta(in[0], in[1], in[2], 1.3, mask); }, {x, a, b});
}

TEST_CASE("lora_delta: equals the formula", "[ops]") {
  at::manual_seed(3);
  const auto x = at::randn({2, 3, 5}), a = at::randn({2, 5}), b = at::randn({4, 2});
  const auto expected = at::linear(at::linear(x, a), b) * 0.25;
  CHECK(largest_difference(ops::lora_delta(x, a, b, 0.25), expected) < 1e-6);
}

TEST_CASE("lora_delta: fp32 factors on half-precision input compute in the input's type", "[ops]") {
  at::manual_seed(4);
  const auto x = at::randn({6, 32}).to(at::kBFloat16).requires_grad_();
  const auto a = at::randn({4, 32}).requires_grad_(), b = at::randn({8, 4}).requires_grad_();
  const auto y = ops::lora_delta(x, a, b, 1.0);
  CHECK(y.scalar_type() == at::kBFloat16);
  y.sum().backward();
  CHECK(a.grad().scalar_type() == at::kFloat);
  CHECK(x.grad().scalar_type() == at::kBFloat16);
  const auto expected = at::ones({6, 8}).t().mm(x.to(at::kFloat).mm(a.detach().t()));
  CHECK(largest_difference(b.grad(), expected) < 0.02 * expected.abs().max().item<double>());
}

TEST_CASE("lora_delta: under autocast fp32 input gives autocast's type and an fp32 gradient", "[ops]") {
  const auto x = at::randn({6, 32}).requires_grad_();
  const auto a = at::randn({4, 32}).requires_grad_(), b = at::randn({8, 4}).requires_grad_();
  at::Tensor y;
  {
    const AutocastGuard autocast(at::kCPU, at::kBFloat16);
    y = ops::lora_delta(x, a, b, 1.0);
  }
  CHECK(y.scalar_type() == at::kBFloat16);
  y.sum().backward();
  CHECK(x.grad().scalar_type() == at::kFloat);
}

TEST_CASE("lora_delta: an fp32 dropout mask works under autocast", "[ops]") {
  const auto x = at::randn({6, 32}).requires_grad_();
  const auto a = at::randn({4, 32}).requires_grad_(), b = at::randn({8, 4}).requires_grad_();
  const AutocastGuard autocast(at::kCPU, at::kBFloat16);
  const auto y = ops::lora_delta(x, a, b, 1.0, at::ones({6, 32}));
  CHECK(y.scalar_type() == at::kBFloat16);
  CHECK(at::equal(y, ops::lora_delta(x, a, b, 1.0)));
}

TEST_CASE("rms_norm: backward equals finite differences", "[ops]") {
  at::manual_seed(5);
  const auto x = random_double({2, 3, 6}), weight = random_double({6});
  check_gradients([](const auto& in) { return ops::rms_norm(in[0], in[1], 1e-5); }, {x, weight});
}

TEST_CASE("rms_norm: equals the formula, statistics in fp32 for bf16", "[ops]") {
  at::manual_seed(6);
  const auto x = (at::randn({4, 64}) * 100).to(at::kBFloat16), weight = at::randn({64});
  const auto wide = x.to(at::kFloat);
  const auto normalized = wide * at::rsqrt(wide.pow(2).mean(-1, true) + 1e-5);
  const auto expected = normalized.to(at::kBFloat16) * weight.to(at::kBFloat16);
  CHECK(largest_difference(ops::rms_norm(x, weight, 1e-5), expected) == 0);
}

TEST_CASE("swiglu: backward equals finite differences, forward the formula", "[ops]") {
  at::manual_seed(7);
  const auto gate = random_double({3, 5}), up = random_double({3, 5});
  check_gradients([](const auto& in) { return ops::swiglu(in[0], in[1]); }, {gate, up});
  const auto expected = gate / (1 + at::exp(-gate)) * up;
  CHECK(largest_difference(ops::swiglu(gate, up), expected) < 1e-14);
}

TEST_CASE("rotate_half: backward equals finite differences, and it is a rotation", "[ops]") {
  at::manual_seed(8);
  const auto x = random_double({2, 2, 3, 4});
  const auto angles = at::randn({1, 1, 3, 2}, at::kDouble);
  const auto cos = angles.cos(), sin = angles.sin();
  check_gradients([&](const auto& in) { return ops::rotate_half(in[0], cos, sin); }, {x});
  const auto y = ops::rotate_half(x, cos, sin);
  CHECK(largest_difference(y.norm(2, {-1}), x.norm(2, {-1})) < 1e-12);
  // The first pair of the first token, by hand.
  const auto x0 = x.index({0, 0, 0}), y0 = y.index({0, 0, 0});
  const double c = cos.index({0, 0, 0, 0}).item<double>(), s = sin.index({0, 0, 0, 0}).item<double>();
  CHECK(y0[0].item<double>() == Approx(x0[0].item<double>() * c - x0[2].item<double>() * s));
  CHECK(y0[2].item<double>() == Approx(x0[2].item<double>() * c + x0[0].item<double>() * s));
}

TEST_CASE("linear_cross_entropy_sum: backward equals finite differences", "[ops]") {
  at::manual_seed(9);
  const auto hidden = random_double({5, 3}), weight = random_double({7, 3});
  const auto labels = at::tensor({0, 6, 3, 3, 1}, at::kLong);
  check_gradients([&](const auto& in) { return ops::linear_cross_entropy_sum(in[0], in[1], labels); }, {hidden, weight});
}

TEST_CASE("linear_cross_entropy_sum: equals the unchunked loss over several chunks", "[ops]") {
  at::manual_seed(10);
  const int64_t rows = 150, vocabulary = 70'000;  // chunks of 64 rows
  const auto hidden = at::randn({rows, 8}).requires_grad_();
  const auto weight = (at::randn({vocabulary, 8}) * 0.3).requires_grad_();
  const auto labels = at::randint(vocabulary, {rows}, at::kLong);
  const auto loss = ops::linear_cross_entropy_sum(hidden, weight, labels);
  const auto gradients = torch::autograd::grad({loss}, {hidden, weight});
  const auto expected = at::cross_entropy_loss(hidden.mm(weight.t()), labels, {}, at::Reduction::Sum);
  const auto expected_gradients = torch::autograd::grad({expected}, {hidden, weight});
  CHECK(loss.item<double>() == Approx(expected.item<double>()).epsilon(1e-6));
  CHECK(largest_difference(gradients[0], expected_gradients[0]) < 1e-5);
  CHECK(largest_difference(gradients[1], expected_gradients[1]) < 1e-5);
}

TEST_CASE("linear_cross_entropy_sum: a frozen head gets no gradient, no-grad mode makes none", "[ops]") {
  const auto hidden = at::randn({4, 8}).requires_grad_(), weight = at::randn({16, 8});
  const auto labels = at::zeros({4}, at::kLong);
  ops::linear_cross_entropy_sum(hidden, weight, labels).backward();
  CHECK(hidden.grad().defined());
  CHECK_FALSE(weight.grad().defined());
  const torch::NoGradGuard no_grad;
  CHECK_FALSE(ops::linear_cross_entropy_sum(hidden, weight, labels).requires_grad());
}
