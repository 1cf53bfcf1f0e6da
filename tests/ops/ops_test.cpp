#include "lora/ops/ops.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/utils.h>

#include <array>
#include <cmath>
#include <functional>
#include <limits>

#include "catch.h"
#include "gradcheck.h"
#include "lora/core/error.h"
#include "lora/ops/autocast.h"
#include "lora/ops/segments.h"

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
  const int64_t rows = 150, vocabulary = 140'000;  // chunks of 64 rows
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

// The fused forms: each has its own backward, so each is checked against finite differences, and against the plain form
// in every type that it has a kernel for.

namespace {

/// Output and gradients of sum(output * cotangent) for inputs of one type.
std::vector<at::Tensor> values_and_gradients(const std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>&)>& f,
                                             const std::vector<at::Tensor>& inputs) {
  std::vector<at::Tensor> leaves;
  for (const auto& input : inputs) leaves.push_back(input.detach().clone().requires_grad_());
  std::vector<at::Tensor> results = f(leaves);
  at::Tensor sum;
  for (size_t i = 0; i < results.size(); ++i) {
    const auto cotangent = at::cos(at::arange(results[i].numel(), at::kFloat) + static_cast<double>(i)).view(results[i].sizes());
    const at::Tensor term = (results[i].to(at::kFloat) * cotangent).sum();
    sum = sum.defined() ? sum + term : term;
  }
  const auto gradients = torch::autograd::grad({sum}, leaves);
  results.insert(results.end(), gradients.begin(), gradients.end());
  return results;
}

/// `f(inputs, fused)` gives the same with and without its kernel: 1e-5 of the largest value in fp32, 2 % in bf16.
void check_fused(const std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>&, bool)>& f,
                 const std::vector<at::Tensor>& inputs) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    std::vector<at::Tensor> typed;
    for (const auto& input : inputs) typed.push_back(input.to(dtype));
    const auto fused = values_and_gradients([&](const auto& in) { return f(in, true); }, typed);
    const auto plain = values_and_gradients([&](const auto& in) { return f(in, false); }, typed);
    for (size_t i = 0; i < fused.size(); ++i) {
      INFO(c10::toString(dtype) << ", result " << i);
      CHECK(fused[i].scalar_type() == plain[i].scalar_type());
      REQUIRE(fused[i].sizes() == plain[i].sizes());
      const double tolerance = dtype == at::kFloat ? 1e-5 : 2e-2;
      CHECK(largest_difference(fused[i], plain[i]) <= tolerance * plain[i].abs().max().item<double>());
    }
  }
}

}  // namespace

TEST_CASE("add_rms_norm: backward equals finite differences, both results", "[ops]") {
  at::manual_seed(20);
  const auto x = random_double({2, 3, 6}), delta = random_double({2, 3, 6}), weight = random_double({6});
  const auto both = [](const at::Tensor& x, const at::Tensor& delta, const at::Tensor& weight) {
    const auto [sum, y] = ops::add_rms_norm(x, delta, weight, 1e-5);
    return at::cat({sum, y * 0.7}, -1);
  };
  check_gradients([&](const auto& in) { return both(in[0], in[1], in[2]); }, {x, delta, weight});
  check_gradients([&](const auto& in) { return ops::add_rms_norm(in[0], {}, in[1], 1e-5).second; }, {x, weight});
  check_gradients([&](const auto& in) { return ops::add_rms_norm(in[0], in[1], weight, 1e-5).first; }, {x, delta});
}

TEST_CASE("add_rms_norm: the kernel equals the plain operations", "[ops]") {
  at::manual_seed(21);
  for (const int64_t width : {5, 64, 333}) {
    check_fused(
        [](const auto& in, bool fused) {
          const auto [sum, y] = ops::add_rms_norm(in[0], in[1], in[2], 1e-6, fused);
          return std::vector<at::Tensor>{sum, y};
        },
        {at::randn({7, width}), at::randn({7, width}), at::randn({width})});
  }
}

TEST_CASE("add_rms_norm: eps counts where numbers are small", "[ops]") {
  at::manual_seed(47);
  const auto x = at::randn({4, 50}) * 1e-3, delta = at::randn({4, 50}) * 1e-3, weight = at::randn({50});
  const auto sum = (x + delta).to(at::kDouble);
  const auto expected = sum / (sum.square().mean(-1, /*keepdim=*/true) + 1e-5).sqrt() * weight;
  CHECK(largest_difference(ops::add_rms_norm(x, delta, weight, 1e-5).second, expected) < 1e-6);
  CHECK(largest_difference(ops::rms_norm(x + delta, weight, 1e-5), expected) < 1e-6);
}

TEST_CASE("add_rms_norm: an fp32 stream with bf16 additions gives bf16", "[ops]") {
  at::manual_seed(22);
  const auto x = at::randn({4, 32}).requires_grad_(), weight = at::randn({32});
  const auto delta = at::randn({4, 32}).to(at::kBFloat16).requires_grad_();
  const auto [sum, y] = ops::add_rms_norm(x, delta, weight, 1e-6);
  CHECK(sum.scalar_type() == at::kFloat);
  CHECK(y.scalar_type() == at::kBFloat16);
  CHECK(largest_difference(sum, x + delta) == 0);
  CHECK(largest_difference(y, ops::rms_norm(x + delta, weight, 1e-6)) < 0.02);
  (y.to(at::kFloat).sum() + sum.sum()).backward();
  CHECK(largest_difference(x.grad(), delta.grad()) < 0.02);
}

TEST_CASE("layer_norm: backward equals finite differences, with and without a residual", "[ops]") {
  at::manual_seed(40);
  const auto x = random_double({2, 3, 6}), delta = random_double({2, 3, 6});
  const auto weight = random_double({6}), bias = random_double({6});
  check_gradients([](const auto& in) { return ops::layer_norm(in[0], in[1], in[2], 1e-5); }, {x, weight, bias});
  const auto both = [](const auto& in) {
    const auto [sum, y] = ops::add_layer_norm(in[0], in[1], 1.7, in[2], in[3], 1e-5);
    return at::cat({sum, y * 0.7}, -1);
  };
  check_gradients(both, {x, delta, weight, bias});
  check_gradients([&](const auto& in) { return ops::add_layer_norm(in[0], in[1], 1.7, weight, bias, 1e-5).first; }, {x, delta});
  check_gradients([&](const auto& in) { return ops::add_layer_norm(in[0], in[1], 1.7, weight, bias, 1e-5).second; }, {x, delta});
  // Frozen weights get none.
  const auto frozen = weight.detach(), unmoved = bias.detach();
  check_gradients([&](const auto& in) { return ops::layer_norm(in[0], frozen, unmoved, 1e-5); }, {x});
  check_gradients([&](const auto& in) { return ops::layer_norm(x.detach(), frozen, in[0], 1e-5); }, {bias});
}

TEST_CASE("layer_norm: equals LibTorch's in every type, odd widths and strided inputs", "[ops]") {
  at::manual_seed(41);
  for (const int64_t width : {1, 5, 64, 333, 4096}) {
    const auto x = at::randn({width, 2, 3}).permute({1, 2, 0}) * 3 + 2, weight = at::randn({width}), bias = at::randn({width});
    for (const auto& [dtype, tolerance] : {std::pair{at::kFloat, 2e-6}, {at::kBFloat16, 8e-3}, {at::kHalf, 1e-3}}) {
      INFO("width " << width << ", " << c10::toString(dtype));
      const auto typed = x.to(dtype);
      const auto y = ops::layer_norm(typed, weight.to(dtype), bias.to(dtype), 1e-5);
      const auto expected = at::layer_norm(typed, {width}, weight.to(dtype), bias.to(dtype), 1e-5);
      CHECK(y.scalar_type() == dtype);
      REQUIRE(y.sizes() == expected.sizes());
      CHECK(largest_difference(y, expected) <= tolerance * std::max(1.0, expected.abs().max().item<double>()));
    }
  }
}

TEST_CASE("add_layer_norm: the kernel equals the plain operations", "[ops]") {
  at::manual_seed(42);
  for (const int64_t width : {5, 64, 333}) {
    check_fused(
        [](const auto& in, bool fused) {
          const auto [sum, y] = ops::add_layer_norm(in[0], in[1], 1.7, in[2], in[3], 1e-5, fused);
          return std::vector<at::Tensor>{sum, y};
        },
        {at::randn({7, width}), at::randn({7, width}), at::randn({width}), at::randn({width})});
  }
  // An fp32 stream with bf16 additions gives bf16.
  const auto x = at::randn({4, 32}), delta = at::randn({4, 32}).to(at::kBFloat16);
  const auto weight = at::randn({32}), bias = at::randn({32});
  const auto [sum, y] = ops::add_layer_norm(x, delta, 1.7, weight, bias, 1e-5);
  CHECK(sum.scalar_type() == at::kFloat);
  CHECK(y.scalar_type() == at::kBFloat16);
  CHECK(largest_difference(sum, x * 1.7 + delta) < 1e-5);
  CHECK(largest_difference(y, at::layer_norm(sum, {32}, weight, bias, 1e-5)) < 0.03);
}

TEST_CASE("layer_norm: a large mean costs no digits", "[ops]") {
  at::manual_seed(43);
  const auto x = at::randn({3, 100}) + 1e3, ones = at::ones({100}), zeros = at::zeros({100});
  const auto wide = x.to(at::kDouble);
  const auto exact = at::layer_norm(wide, {100}, ones.to(at::kDouble), zeros.to(at::kDouble), 1e-5);
  CHECK(largest_difference(ops::layer_norm(x, ones, zeros, 1e-5), exact) < 1e-3);
}

TEST_CASE("gelu_tanh: backward equals finite differences, also far out", "[ops]") {
  at::manual_seed(44);
  check_gradients([](const auto& in) { return ops::gelu_tanh(in[0]); }, {random_double({2, 3, 5})});
  check_gradients([](const auto& in) { return ops::gelu_tanh(in[0]); },
                  {at::tensor({-40.0, -6.0, -0.5, 0.0, 0.5, 6.0, 40.0}, at::kDouble).requires_grad_()});
}

TEST_CASE("gelu_tanh: equals LibTorch's in every type, odd widths and strided inputs", "[ops]") {
  at::manual_seed(45);
  for (const auto& [dtype, tolerance] : {std::pair{at::kFloat, 1e-6}, {at::kBFloat16, 8e-3}, {at::kHalf, 1e-3}}) {
    for (const int64_t width : {1, 66, 333}) {
      INFO("width " << width << ", " << c10::toString(dtype));
      const auto x = (at::randn({width, 5}) * 4).to(dtype).t();
      const auto y = ops::gelu_tanh(x), expected = at::gelu(x, "tanh");
      CHECK(y.scalar_type() == dtype);
      CHECK(largest_difference(y, expected) <= tolerance * expected.abs().max().item<double>());
    }
  }
  check_fused([](const auto& in, bool fused) { return std::vector<at::Tensor>{ops::gelu_tanh(in[0], fused)}; },
              {at::randn({5, 3, 66}) * 4});
  // Where the cube overflows.
  const auto far = at::tensor({-1e20, -1e4, 1e4, 1e20}, at::kFloat);
  CHECK(at::equal(ops::gelu_tanh(far), at::tensor({0.0, 0.0, 1e4, 1e20}, at::kFloat)));
}

TEST_CASE("swiglu_joined: backward equals finite differences, the kernel the plain operations", "[ops]") {
  at::manual_seed(23);
  check_gradients([](const auto& in) { return ops::swiglu_joined(in[0]); }, {random_double({2, 3, 8})});
  for (const int64_t width : {2, 66, 1024}) {
    check_fused([](const auto& in, bool fused) { return std::vector<at::Tensor>{ops::swiglu_joined(in[0], fused)}; },
                {at::randn({5, 3, width}) * 4});
  }
}

TEST_CASE("split_rotated: backward equals finite differences, the kernel the plain operations", "[ops]") {
  at::manual_seed(24);
  const int64_t heads = 4, groups = 2, length = 3, size = 6;
  const auto qkv = random_double({2, length, (heads + 2 * groups) * size});
  for (const int64_t table_rows : {1, 2}) {  // one table for all rows, or one each
    const auto angles = at::randn({table_rows, 1, length, size / 2}, at::kDouble);
    const auto joined = [&](const at::Tensor& x, bool fused) {
      const auto parts = ops::split_rotated(x, angles.cos(), angles.sin(), heads, groups, fused);
      return std::vector<at::Tensor>{parts.q_BHSK, parts.k_BGSK, parts.v_BGSK};
    };
    check_gradients(
        [&](const auto& in) {
          const auto parts = joined(in[0], true);
          return at::cat({parts[0].reshape(-1), parts[1].reshape(-1) * 2, parts[2].reshape(-1) * 3});
        },
        {qkv});
    check_fused([&](const auto& in, bool fused) { return joined(in[0], fused); }, {qkv});
  }
}

TEST_CASE("causal_attention: backward equals finite differences", "[ops]") {
  at::manual_seed(25);
  const auto q = random_double({2, 4, 5, 3}), k = random_double({2, 2, 5, 3}), v = random_double({2, 2, 5, 3});
  check_gradients([](const auto& in) { return ops::causal_attention({in[0], in[1], in[2]}); }, {q, k, v});
}

TEST_CASE("attend_to_cache: the kernel equals attention in double, shared heads, room behind the keys", "[ops]") {
  at::manual_seed(33);
  const int64_t batch = 2, heads = 6, size = 20, room = 100;
  const auto draw = [&](int64_t count, int64_t length) {
    return (at::randn({batch, count, length, size}) * 2).to(at::kBFloat16).to(at::kDouble);  // exact in every type
  };
  for (const int64_t groups : {6, 2, 1}) {
    for (const int64_t keys : {1, 17, 100}) {
      const auto q = draw(heads, 1), k_store = draw(groups, room), v_store = draw(groups, room);
      const auto k = k_store.narrow(2, 0, keys), v = v_store.narrow(2, 0, keys);
      const auto expected = ops::attend_to_cache({q, k, v}, /*fused=*/false);
      CHECK(expected.sizes() == at::IntArrayRef({batch, 1, heads * size}));
      for (const auto& [type, tolerance] : {std::pair{at::kDouble, 1e-12}, {at::kFloat, 1e-5}, {at::kBFloat16, 0.02}}) {
        INFO(groups << " groups, " << keys << " keys, " << c10::toString(type));
        const auto as = [type = type](const at::Tensor& x) { return x.to(type); };
        const ops::Heads narrow{as(q), as(k_store).narrow(2, 0, keys), as(v_store).narrow(2, 0, keys)};
        const at::NoGradGuard no_grad;
        CHECK(largest_difference(ops::attend_to_cache(narrow), expected) < tolerance);
      }
    }
  }
}

TEST_CASE("attend_to_cache: keys, values and queries of any layout", "[ops]") {
  at::manual_seed(36);
  const auto draw = [](at::IntArrayRef sizes) { return at::randn(sizes, at::kDouble); };
  const auto q = draw({2, 4, 3, 6}), k = draw({2, 2, 9, 6}), v = draw({2, 2, 9, 6});
  const auto expected = ops::attend_to_cache({q, k, v}, /*fused=*/false);
  // The same numbers, elsewhere in memory.
  const auto put = [&](at::Tensor place, const at::Tensor& numbers) { return place.copy_(numbers); };
  const auto layouts = [&](const at::Tensor& x) {
    const auto [b, h, s, d] = std::tuple(x.size(0), x.size(1), x.size(2), x.size(3));
    return std::vector<at::Tensor>{put(draw({b, h, d, s, d}).select(4, 0).transpose(2, 3), x),  // a head's numbers apart
                                   put(draw({b, h, s, d + 2}).narrow(3, 1, d), x),              // gaps between positions
                                   put(draw({b, s, h, d}).transpose(1, 2), x),                  // heads of a position together
                                   put(draw({b, h + 3, s, d}).narrow(1, 1, h), x),              // gaps between rows
                                   put(draw({b, h, 2 * s, d}).narrow(2, 0, s), x)};             // room behind the positions
  };
  const at::NoGradGuard no_grad;
  for (const auto& other : layouts(k)) CHECK(largest_difference(ops::attend_to_cache({q, other, v}), expected) < 1e-12);
  for (const auto& other : layouts(v)) CHECK(largest_difference(ops::attend_to_cache({q, k, other}), expected) < 1e-12);
  for (const auto& other : layouts(q)) CHECK(largest_difference(ops::attend_to_cache({other, k, v}), expected) < 1e-12);
}

TEST_CASE("attend_to_cache: large scores overflow nothing", "[ops]") {
  at::manual_seed(37);
  for (const double size : {300.0, -300.0}) {
    const auto q = at::full({1, 2, 1, 4}, size), k = at::randn({1, 2, 20, 4}) + 5, v = at::randn({1, 2, 20, 4});
    const auto expected = ops::attend_to_cache({q.to(at::kDouble), k.to(at::kDouble), v.to(at::kDouble)}, /*fused=*/false);
    CHECK(largest_difference(ops::attend_to_cache({q, k, v}), expected) < 1e-2);  // scores of thousands have few digits left
  }
}

TEST_CASE("attend_to_cache: each of several queries sees what came before it and itself, and not the other queries", "[ops]") {
  at::manual_seed(35);
  const int64_t batch = 2, heads = 6, size = 20, room = 100;
  const auto draw = [&](int64_t count, int64_t length) {
    return (at::randn({batch, count, length, size}) * 2).to(at::kBFloat16).to(at::kDouble);
  };
  for (const int64_t groups : {6, 2}) {
    for (const auto& [queries, keys] : {std::pair<int64_t, int64_t>{4, 4}, {2, 17}, {3, 100}, {4, 100}, {6, 30}}) {
      const auto q = draw(heads, queries), k = draw(groups, room), v = draw(groups, room);
      const auto heads_of = [&](at::ScalarType type, int64_t first, int64_t count) {
        const int64_t seen = keys - queries + first + count;
        return ops::Heads{q.narrow(2, first, count).to(type), k.to(type).narrow(2, 0, seen), v.to(type).narrow(2, 0, seen)};
      };
      const at::NoGradGuard no_grad;
      for (const auto& [type, tolerance] : {std::pair{at::kDouble, 1e-12}, {at::kFloat, 1e-5}, {at::kBFloat16, 0.02}}) {
        INFO(groups << " groups, " << queries << " queries, " << keys << " keys, " << c10::toString(type));
        const auto together = ops::attend_to_cache(heads_of(type, 0, queries));
        CHECK(together.sizes() == at::IntArrayRef({batch, queries, heads * size}));
        for (int64_t i = 0; i < queries; ++i) {
          const auto alone = ops::attend_to_cache(heads_of(type, i, 1));
          const bool has_kernel = queries <= 4;
          if (has_kernel) CHECK(at::equal(together.narrow(1, i, 1), alone));
          CHECK(largest_difference(together.narrow(1, i, 1), alone.to(at::kDouble)) < tolerance);
          CHECK(largest_difference(alone, ops::attend_to_cache(heads_of(at::kDouble, i, 1), /*fused=*/false)) < tolerance);
        }
        CHECK(largest_difference(ops::attend_to_cache(heads_of(type, 0, queries), /*fused=*/false), together.to(at::kDouble)) <
              tolerance);
      }
    }
  }
}

TEST_CASE("attend_to_cache: gradients are those of the plain form", "[ops]") {
  at::manual_seed(34);
  const auto q = random_double({1, 2, 1, 3}), k = random_double({1, 1, 4, 3}), v = random_double({1, 1, 4, 3});
  check_gradients([](const auto& in) { return ops::attend_to_cache({in[0], in[1], in[2]}); }, {q, k, v});
  const auto several = random_double({1, 2, 3, 3});
  check_gradients([](const auto& in) { return ops::attend_to_cache({in[0], in[1], in[2]}); }, {several, k, v});
  // Each alone.
  check_gradients([&](const auto& in) { return ops::attend_to_cache({q.detach(), in[0], v.detach()}); }, {k});
  check_gradients([&](const auto& in) { return ops::attend_to_cache({q.detach(), k.detach(), in[0]}); }, {v});
}

TEST_CASE("attend_to_cache: keys and values of another type than the queries are LibTorch's error", "[ops]") {
  const at::NoGradGuard no_grad;
  const auto wide = at::ones({1, 2, 1, 4}), narrow = wide.to(at::kBFloat16);
  CHECK_THROWS_AS(ops::attend_to_cache({wide, narrow, wide}), c10::Error);
  CHECK_THROWS_AS(ops::attend_to_cache({wide, wide, narrow}), c10::Error);
}

TEST_CASE("causal_attention: equals the plain form over one block and several", "[ops]") {
  at::manual_seed(26);
  for (const auto& [batch, heads, groups, length] :
       std::vector<std::array<int64_t, 4>>{{2, 4, 4, 7}, {2, 4, 2, 130}, {1, 2, 1, 600}, {3, 1, 1, 64}}) {
    INFO(heads << " heads, " << groups << " groups, " << length << " positions");
    check_fused(
        [](const auto& in, bool fused) {
          return std::vector<at::Tensor>{ops::causal_attention({in[0], in[1], in[2]}, fused)};
        },
        {at::randn({batch, heads, length, 16}), at::randn({batch, groups, length, 16}), at::randn({batch, groups, length, 16})});
  }
}

TEST_CASE("causal_attention: a bf16 gradient is as near the fp32 one as the stock operation's", "[ops]") {
  at::manual_seed(27);
  const auto gradient_of_q = [](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool fused) {
    const auto leaf = q.detach().clone().requires_grad_();
    ops::causal_attention({leaf, k, v}, fused).to(at::kFloat).square().sum().backward();
    return leaf.grad().to(at::kFloat);
  };
  // Large scores, for which a rounded score would be a wrong probability.
  const auto q = at::randn({1, 4, 200, 32}).to(at::kBFloat16) * 4, k = at::randn({1, 4, 200, 32}).to(at::kBFloat16) * 4;
  const auto v = at::randn({1, 4, 200, 32}).to(at::kBFloat16);
  const auto exact = gradient_of_q(q.to(at::kFloat), k.to(at::kFloat), v.to(at::kFloat), false);
  const double ours = (gradient_of_q(q, k, v, true) - exact).norm().item<double>();
  const double stock = (gradient_of_q(q, k, v, false) - exact).norm().item<double>();
  CHECK(ours < 1.5 * stock);
}

namespace {

/// Projections of 4 query and 2 key/value heads, and rotary tables for `positions`.
struct Projections {
  int64_t heads = 4, groups = 2, size;
  at::Tensor qkv, cos, sin;

  Projections(int64_t batch, int64_t length, int64_t size_, int64_t tables, int64_t positions) : size(size_) {
    // Numbers that every type holds exactly.
    qkv = (at::randn({batch, length, (heads + 2 * groups) * size}) * 1.5).to(at::kBFloat16).to(at::kDouble);
    const auto angles = at::randn({tables, 1, positions, size / 2}, at::kDouble);
    cos = angles.cos(), sin = angles.sin();
  }

  at::Tensor joined(const at::Tensor& x, const std::vector<int64_t>& lengths = {}) const {
    return ops::joined_attention(x, cos, sin, heads, groups, lengths);
  }
  /// Sequence by sequence, by LibTorch's attention.
  at::Tensor plain(const at::Tensor& x, std::vector<int64_t> lengths = {}) const {
    if (lengths.empty()) return ops::causal_attention(ops::split_rotated(x, cos, sin, heads, groups, false), false);
    std::vector<at::Tensor> parts;
    int64_t begin = 0;
    for (const int64_t length : lengths) {
      const auto rows = x.narrow(1, begin, length);
      parts.push_back(ops::causal_attention(
          ops::split_rotated(rows, cos.narrow(2, 0, length), sin.narrow(2, 0, length), heads, groups, false), false));
      begin += length;
    }
    return at::cat(parts, 1);
  }
};

/// The result and the gradient of its product with fixed weights.
template <class Attend>
std::array<at::Tensor, 2> attended(const at::Tensor& qkv, at::ScalarType type, Attend attend) {
  const auto leaf = qkv.to(type).detach().clone().requires_grad_();
  const auto out = attend(leaf);
  at::manual_seed(41);
  const auto weights = at::randn(out.sizes()).to(at::kBFloat16);
  (out * weights.to(type)).sum().backward();
  return {out.detach(), leaf.grad()};
}

}  // namespace

TEST_CASE("joined_attention: backward equals finite differences", "[ops]") {
  at::manual_seed(35);
  for (const int64_t tables : {1, 2}) {
    const Projections two_rows(2, 5, 4, tables, 5);
    check_gradients([&](const auto& in) { return two_rows.joined(in[0]); }, {random_double(two_rows.qkv.sizes())});
  }
  const Projections packed(1, 10, 4, 1, 6);
  check_gradients([&](const auto& in) { return packed.joined(in[0], {3, 1, 6}); }, {random_double(packed.qkv.sizes())});
}

TEST_CASE("joined_attention: equals LibTorch's, sequence by sequence, over one block and several", "[ops]") {
  at::manual_seed(36);
  struct Case {
    int64_t batch, length, size;
    std::vector<int64_t> lengths;
  };
  // Blocks are of 64 queries and 512 keys; a head of 6 or 10 numbers fills no vector.
  const std::vector<Case> cases = {{3, 1, 16, {}},
                                   {2, 63, 6, {}},
                                   {2, 64, 64, {}},
                                   {1, 65, 10, {}},
                                   {1, 600, 16, {}},
                                   {1, 1100, 8, {}},
                                   {1, 200, 32, {1, 64, 65, 70}},
                                   {1, 700, 16, {577, 100, 23}}};
  for (const auto& [batch, length, size, lengths] : cases) {
    const Projections given(batch, length, size, batch == 2 ? 2 : 1, length);
    const auto joined = [&](const auto& x) { return given.joined(x, lengths); };
    const auto plain = [&](const auto& x) { return given.plain(x, lengths); };
    const auto expected = attended(given.qkv, at::kDouble, plain);
    for (const auto& [type, tolerance] : {std::pair{at::kDouble, 1e-12}, {at::kFloat, 2e-5}, {at::kBFloat16, 0.02}}) {
      INFO(batch << " x " << length << ", heads of " << size << ", " << lengths.size() << " sequences, " << c10::toString(type));
      const auto found = attended(given.qkv, type, joined);
      for (size_t i = 0; i < 2; ++i) {
        REQUIRE(found[i].scalar_type() == type);
        CHECK(largest_difference(found[i], expected[i]) < tolerance * expected[i].abs().max().item<double>());
      }
      if (type != at::kBFloat16) continue;
      const auto stock = attended(given.qkv, type, plain);
      const auto error = [&](const auto& x, size_t i) {
        return (x[i].to(at::kDouble) - expected[i]).norm().template item<double>();
      };
      for (size_t i = 0; i < 2; ++i) CHECK(error(found, i) <= 1.2 * error(stock, i));
    }
  }
}

TEST_CASE("joined_attention: contexts that all see, backward equals finite differences", "[ops]") {
  at::manual_seed(42);
  const Projections two_rows(2, 6, 4, 2, 6);
  const auto attend_rows = [&](const auto& in) {
    return ops::joined_attention(in[0], two_rows.cos, two_rows.sin, 4, 2, {}, {4, 6});
  };
  check_gradients(attend_rows, {random_double(two_rows.qkv.sizes())});
  const Projections packed(1, 10, 4, 1, 10);
  const auto attend_packed = [&](const auto& in) {
    return ops::joined_attention(in[0], packed.cos, packed.sin, 4, 2, {3, 1, 6}, {2, 0, 5});
  };
  check_gradients(attend_packed, {random_double(packed.qkv.sizes())});
}

TEST_CASE("joined_attention: contexts equal LibTorch's attention with a mask, over one block and several", "[ops]") {
  at::manual_seed(43);
  struct Case {
    int64_t batch, length, size;
    std::vector<int64_t> lengths, contexts;
  };
  const std::vector<Case> cases = {{3, 5, 16, {}, {0, 3, 5}},
                                   {2, 130, 8, {}, {1, 129}},
                                   {1, 700, 16, {}, {640}},
                                   {1, 1100, 8, {}, {70}},
                                   {1, 700, 16, {577, 100, 23}, {520, 0, 23}}};
  for (const auto& [batch, length, size, lengths, contexts] : cases) {
    const Projections given(batch, length, size, batch, length);
    const auto joined = [&](const auto& x) { return ops::joined_attention(x, given.cos, given.sin, 4, 2, lengths, contexts); };
    // Every token's own row of the tables, and a mask from the definition.
    const auto plain = [&](const auto& x) {
      const auto heads = ops::split_rotated(x, given.cos.to(at::kDouble), given.sin.to(at::kDouble), 4, 2, false);
      at::Tensor seen = at::zeros({batch, 1, length, length}, at::kBool);
      for (int64_t row = 0, sequence = 0, begin = 0; sequence < static_cast<int64_t>(contexts.size()); ++sequence) {
        const int64_t own = lengths.empty() ? length : lengths[static_cast<size_t>(sequence)];
        auto part = seen[row][0].narrow(0, begin, own).narrow(1, begin, own);
        part.copy_(at::ones({own, own}, at::kBool).tril());
        part.narrow(1, 0, contexts[static_cast<size_t>(sequence)]).fill_(true);
        if (lengths.empty())
          ++row;
        else
          begin += own;
      }
      const auto out = at::scaled_dot_product_attention(heads.q_BHSK, ops::repeat_heads(heads.k_BGSK, 4),
                                                        ops::repeat_heads(heads.v_BGSK, 4), seen);
      return out.transpose(1, 2).reshape({batch, length, -1});
    };
    const auto expected = attended(given.qkv, at::kDouble, plain);
    for (const auto& [type, tolerance] : {std::pair{at::kDouble, 1e-12}, {at::kFloat, 2e-5}, {at::kBFloat16, 0.02}}) {
      INFO(batch << " x " << length << ", " << lengths.size() << " sequences, " << c10::toString(type));
      const auto found = attended(given.qkv, type, joined);
      for (size_t i = 0; i < 2; ++i) {
        CHECK(largest_difference(found[i], expected[i]) < tolerance * expected[i].abs().max().item<double>());
      }
    }
  }
}

TEST_CASE("causal_attention: contexts give the same with and without kernels", "[ops]") {
  at::manual_seed(44);
  const auto heads = [](int64_t count) { return at::randn({2, count, 9, 8}, at::kDouble); };
  const ops::Heads given{heads(4), heads(2), heads(2)};
  CHECK(largest_difference(ops::causal_attention(given, true, {4, 9}), ops::causal_attention(given, false, {4, 9})) < 1e-12);
  CHECK(largest_difference(ops::causal_attention(given, true, {0, 0}), ops::causal_attention(given, false)) < 1e-12);
  for (const bool fused : {true, false}) {
    CHECK_THROWS_AS(ops::causal_attention(given, fused, {4}), ShapeError);
    CHECK_THROWS_AS(ops::causal_attention(given, fused, {4, 10}), ShapeError);
    CHECK_THROWS_AS(ops::causal_attention(given, fused, {-1, 9}), ShapeError);
  }
}

TEST_CASE("joined_attention: heads of an odd size, not rotated", "[ops]") {
  at::manual_seed(37);
  const auto qkv = at::randn({1, 70, 12}).to(at::kBFloat16).to(at::kDouble);  // two heads and one of keys, of 3 numbers
  const auto of_type = [&](at::ScalarType type) {
    return attended(qkv, type, [](const auto& x) { return ops::joined_attention(x, {}, {}, 2, 1); });
  };
  const auto expected = attended(qkv, at::kDouble, [](const auto& x) {
    const auto heads = [&](int64_t from, int64_t count) {
      return x.narrow(2, 3 * from, 3 * count).view({1, 70, count, 3}).transpose(1, 2);
    };
    return ops::causal_attention({heads(0, 2), heads(2, 1), heads(3, 1)}, false);
  });
  for (const auto& [type, tolerance] : {std::pair{at::kDouble, 1e-12}, {at::kBFloat16, 0.02}}) {
    const auto found = of_type(type);
    for (size_t i = 0; i < 2; ++i) {
      CHECK(largest_difference(found[i], expected[i]) < tolerance * expected[i].abs().max().item<double>());
    }
  }
}

TEST_CASE("joined_attention: nothing depends on later tokens, other sequences or threads", "[ops]") {
  at::manual_seed(38);
  const Projections given(1, 150, 16, 1, 100);
  const std::vector<int64_t> lengths = {100, 50};
  const auto type = GENERATE(at::kBFloat16, at::kFloat);
  const auto run = [&](const at::Tensor& qkv) {
    return attended(qkv, type, [&](const auto& x) { return given.joined(x, lengths); });
  };
  const auto first = run(given.qkv);
  auto changed_qkv = given.qkv.clone();
  changed_qkv.narrow(1, 70, 30).fill_(9);
  const auto changed = run(changed_qkv);
  CHECK(at::equal(first[0].narrow(1, 0, 70), changed[0].narrow(1, 0, 70)));
  CHECK_FALSE(at::equal(first[0].narrow(1, 70, 30), changed[0].narrow(1, 70, 30)));
  for (size_t i = 0; i < 2; ++i) CHECK(at::equal(first[i].narrow(1, 100, 50), changed[i].narrow(1, 100, 50)));
  const int threads = at::get_num_threads();
  at::set_num_threads(threads == 1 ? 2 : 1);
  const auto again = run(given.qkv);
  at::set_num_threads(threads);
  for (size_t i = 0; i < 2; ++i) CHECK(at::equal(first[i], again[i]));
}

TEST_CASE("joined_attention: shapes that do not fit are errors", "[ops]") {
  const Projections given(1, 10, 4, 1, 10);
  const auto attend = [&](int64_t heads, int64_t tables, std::vector<int64_t> lengths) {
    return ops::joined_attention(given.qkv, given.cos.narrow(2, 0, tables), given.sin.narrow(2, 0, tables), heads, 2, lengths);
  };
  CHECK_NOTHROW(attend(4, 10, {4, 6}));
  CHECK_NOTHROW(attend(4, 6, {4, 6}));
  CHECK_THROWS_AS(attend(3, 10, {}), ShapeError);
  CHECK_THROWS_AS(attend(4, 9, {}), ShapeError);
  CHECK_THROWS_AS(attend(4, 5, {4, 6}), ShapeError);
  CHECK_THROWS_AS(attend(4, 10, {4, 7}), ShapeError);
  CHECK_THROWS_AS(attend(4, 10, {4, 0, 6}), ShapeError);
  CHECK_THROWS_AS(attend(4, 10, {11, -1}), ShapeError);
}

TEST_CASE("joined_attention: a type without a kernel is an error", "[ops]") {
  CHECK_THROWS_AS(ops::joined_attention(at::zeros({1, 2, 12}, at::kHalf), {}, {}, 1, 1), ShapeError);
  CHECK_FALSE(ops::attends_joined(at::kCPU, at::kHalf));
}

TEST_CASE("segments: laying tokens out and taking them back, backward equals finite differences", "[ops]") {
  at::manual_seed(32);
  // Two classes, the first with more than eight sequences, so that both kinds of padding occur.
  const std::vector<int64_t> lengths = {3, 1, 2, 5, 4, 2, 3, 1, 2, 40};
  const auto segments = ops::segments_of(lengths, at::kCPU);
  REQUIRE(segments.classes.size() == 2);
  CHECK(segments.longest == 40);
  const auto x = random_double({63, 2});
  CHECK(at::equal(ops::taken_back(ops::laid_out(x, segments), segments), x));
  check_gradients([&](const auto& in) { return ops::taken_back(ops::laid_out(in[0], segments).sin(), segments); }, {x});
}

TEST_CASE("linear_cross_entropy_sum: the kernel equals the plain operations, last chunk filled up", "[ops]") {
  at::manual_seed(28);
  const int64_t vocabulary = 70'000;  // chunks of 64 rows
  const auto labels = at::randint(vocabulary, {70}, at::kLong);
  const auto hidden = at::randn({70, 8}), weight = at::randn({vocabulary, 8}) * 0.3;
  check_fused(
      [&](const auto& in, bool fused) {
        return std::vector<at::Tensor>{ops::linear_cross_entropy_sum(in[0], in[1], labels, nullptr, fused)};
      },
      {hidden, weight});
}

TEST_CASE("linear_cross_entropy_sum: rows with a negative label count for nothing", "[ops]") {
  at::manual_seed(46);
  const auto hidden = at::randn({6, 8}), weight = at::randn({20, 8});
  const auto labels = at::tensor({3, -100, 19, -1, 0, -100}, at::kLong), counted = at::tensor({0, 2, 4}, at::kLong);
  for (const bool fused : {true, false}) {
    const auto leaf = hidden.clone().requires_grad_(), head = weight.clone().requires_grad_();
    const auto loss = ops::linear_cross_entropy_sum(leaf, head, labels, nullptr, fused);
    const auto known = labels.where(labels >= 0, -100);
    const auto expected = at::cross_entropy_loss(leaf.mm(head.t()), known, {}, at::Reduction::Sum);
    CHECK(loss.item<double>() == Approx(expected.item<double>()).epsilon(1e-6));
    const auto ours = torch::autograd::grad({loss}, {leaf, head}), theirs = torch::autograd::grad({expected}, {leaf, head});
    CHECK(largest_difference(ours[0], theirs[0]) < 1e-6);
    CHECK(largest_difference(ours[1], theirs[1]) < 1e-5);
  }
  CHECK_THROWS_AS(ops::linear_cross_entropy_sum(hidden, weight, at::full({6}, 20, at::kLong)), ShapeError);
}

TEST_CASE("linear_cross_entropy_sum: large logits overflow nothing", "[ops]") {
  at::manual_seed(48);
  const auto hidden = (at::randn({6, 8}) * 64).round(), weight = (at::randn({70, 8}) * 64).round();  // exact logits of thousands
  const auto labels = at::randint(70, {6}, at::kLong);
  const auto run = [&](at::ScalarType type, const auto& loss_of) {
    const auto x = hidden.to(type).requires_grad_(), w = weight.to(type).requires_grad_();
    const at::Tensor loss = loss_of(x, w);
    const auto gradients = torch::autograd::grad({loss}, {x, w});
    return std::vector<at::Tensor>{loss.detach(), gradients[0], gradients[1]};
  };
  const auto expected = run(at::kDouble, [&](const auto& x, const auto& w) {
    return at::cross_entropy_loss(x.mm(w.t()), labels, {}, at::Reduction::Sum);
  });
  for (const bool fused : {true, false}) {
    const auto found = run(
        at::kFloat, [&](const auto& x, const auto& w) { return ops::linear_cross_entropy_sum(x, w, labels, nullptr, fused); });
    for (size_t i = 0; i < 3; ++i) {
      CHECK(largest_difference(found[i], expected[i]) <= 1e-5 * expected[i].abs().max().item<double>());
    }
  }
}

TEST_CASE("linear_cross_entropy_sum: a trained weight's gradient is summed over chunks in fp32", "[ops]") {
  at::manual_seed(49);
  constexpr int64_t kVocabulary = 140'000, kChunk = 64, kChunks = 11;
  const auto labels = at::randint(kVocabulary, {kChunk}, at::kLong), hidden = at::randn({kChunk, 4}).to(at::kBFloat16);
  const auto gradient = [&](int64_t chunks, at::ScalarType type) {
    const AutocastGuard autocast(at::kCPU, at::kBFloat16);
    const auto weight =
        at::sin(at::arange(kVocabulary * 4, at::kFloat)).view({kVocabulary, 4}).to(at::kBFloat16).to(type).requires_grad_();
    const auto loss = ops::linear_cross_entropy_sum(hidden.repeat({chunks, 1}), weight, labels.repeat({chunks}));
    return torch::autograd::grad({loss}, {weight})[0];
  };
  // Chunks that are alike have the same gradient, of 8 bits each.
  const auto one = gradient(1, at::kBFloat16).to(at::kFloat);
  CHECK(at::equal(gradient(kChunks, at::kFloat), one * kChunks));
  CHECK(at::equal(gradient(kChunks, at::kBFloat16), (one * kChunks).to(at::kBFloat16)));
}

TEST_CASE("linear_cross_entropy_sum: no rows are no loss, and a gradient of zeros", "[ops]") {
  const auto weight = at::randn({5, 4}).requires_grad_();
  const auto loss = ops::linear_cross_entropy_sum(at::zeros({0, 4}), weight, at::zeros({0}, at::kLong));
  CHECK(loss.item<double>() == 0);
  CHECK(at::equal(torch::autograd::grad({loss}, {weight})[0], at::zeros({5, 4})));
}

TEST_CASE("linear_cross_entropy_sum: a packed weight stands for a frozen one of the type that computes", "[ops]") {
  if (!ops::PackedWeight::pays(at::kBFloat16)) {
    WARN("skipped: this processor does not multiply bf16");
    return;
  }
  at::manual_seed(50);
  const auto hidden = at::randn({70, 64}).to(at::kBFloat16), weight = at::randn({96, 64}).to(at::kBFloat16) * 0.2;
  const auto labels = at::randint(96, {70}, at::kLong);
  const auto pack = [](const at::Tensor& w) {
    return std::make_shared<const ops::PackedWeight>(std::vector<at::Tensor>{w}, at::kBFloat16);
  };
  const auto run = [&](const at::Tensor& hidden, const at::Tensor& weight, const auto& packed) {
    const auto x = hidden.clone().requires_grad_();
    const auto loss = ops::linear_cross_entropy_sum(x, weight, labels, packed);
    return std::vector<at::Tensor>{loss.detach(), torch::autograd::grad({loss}, {x})[0]};
  };
  const auto check_near = [](const auto& found, const auto& expected, double tolerance) {
    for (size_t i = 0; i < 2; ++i) {
      CHECK(largest_difference(found[i], expected[i]) <= tolerance * expected[i].abs().max().template item<double>());
    }
  };
  const auto wide = run(hidden.to(at::kDouble), weight.to(at::kDouble), nullptr);
  check_near(run(hidden, weight, pack(weight)), wide, 0.02);
  // A weight that trains has left the packed one behind, and fp32 does not compute in bf16.
  const auto old = pack(at::zeros_like(weight));
  check_near(run(hidden, weight.clone().requires_grad_(), old), wide, 0.02);
  check_near(run(hidden.to(at::kFloat), weight.to(at::kFloat), old), wide, 1e-5);
}

TEST_CASE("values that are not finite stay so in every kernel", "[ops]") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const double sign : {1.0, -1.0}) {
      const auto x = at::ones({3, 32}).to(dtype);
      x[1][7] = std::copysign(nan, sign);
      const auto is_nan_there = [](const at::Tensor& y) {
        return y[1].isnan().any().item<bool>() && !y[0].isnan().any().item<bool>();
      };
      CHECK(is_nan_there(ops::add_rms_norm(x, {}, at::ones({32}), 1e-6).second));
      CHECK(is_nan_there(ops::add_rms_norm(at::ones_like(x), x, at::ones({32}), 1e-6).first));
      CHECK(is_nan_there(ops::swiglu_joined(x)));
      CHECK(is_nan_there(ops::gelu_tanh(x)));
      CHECK(is_nan_there(ops::layer_norm(x, at::ones({32}), at::zeros({32}), 1e-6)));
      const auto loss = ops::linear_cross_entropy_sum(x, at::randn({70, 32}).to(dtype), at::zeros({3}, at::kLong));
      CHECK(loss.isnan().item<bool>());
    }
  }
}

TEST_CASE("frozen_linear: backward equals finite differences, several layers, updates and biases", "[ops]") {
  at::manual_seed(29);
  const auto w1 = random_double({4, 5}), w2 = random_double({3, 5}), bias = random_double({4});
  const ops::FrozenWeights weights{{w1, w2}, nullptr, {bias, at::zeros({3}, at::kDouble)}, {4, 3}};
  const auto x = random_double({2, 3, 5}), a1 = random_double({2, 5}), b1 = random_double({4, 2}), a2 = random_double({1, 5}),
             b2 = random_double({3, 1});
  const auto run = [&](const auto& in) {
    return ops::frozen_linear(in[0], weights, {{in[1], in[2], 0.5, 0}, {in[3], in[4], 2.0, 1}, {in[3], in[4], 0.3, 1}});
  };
  check_gradients(run, {x, a1, b1, a2, b2});
  const auto expected = at::cat({at::linear(x, w1, bias) + 0.5 * at::linear(at::linear(x, a1), b1),
                                 at::linear(x, w2) + 2.3 * at::linear(at::linear(x, a2), b2)},
                                -1);
  CHECK(largest_difference(run(std::vector<at::Tensor>{x, a1, b1, a2, b2}), expected) < 1e-12);
  check_gradients([&](const auto& in) { return ops::frozen_linear(in[0], weights, {}); }, {x});
}

TEST_CASE("frozen_linear: either factor trains alone", "[ops]") {
  at::manual_seed(51);
  const auto x = random_double({2, 5}, false), w = random_double({4, 5}, false);
  const auto a = random_double({2, 5}), b = random_double({4, 2}), other_a = random_double({3, 5}),
             other_b = random_double({4, 3});
  const auto run = [&](const at::Tensor& a, const at::Tensor& b, const at::Tensor& other_a, const at::Tensor& other_b) {
    return ops::frozen_linear(x, {{w}, nullptr, {}, {4}}, {{a, b, 0.5, 0}, {other_a, other_b, 2.0, 0}});
  };
  check_gradients([&](const auto& in) { return run(in[0], b.detach(), other_a.detach(), in[1]); }, {a, other_b});
  check_gradients([&](const auto& in) { return run(a.detach(), in[0], in[1], other_b.detach()); }, {b, other_a});
}

TEST_CASE("frozen_linear: autocast decides the type at the forward pass alone", "[ops]") {
  at::manual_seed(52);
  const auto x = at::randn({6, 20}), w = at::randn({7, 20}), a = at::randn({2, 20}), b = at::randn({7, 2}),
             dy = at::randn({6, 7});
  const auto run = [&](at::ScalarType forward_type, at::ScalarType backward_type, int64_t rows) {
    const auto leaf = x.narrow(0, 0, rows).clone().requires_grad_(), a_leaf = a.clone().requires_grad_(),
               b_leaf = b.clone().requires_grad_();
    at::Tensor y;
    {
      const AutocastGuard autocast(at::kCPU, forward_type);
      y = ops::frozen_linear(leaf, {{w}, nullptr, {}, {7}}, {{a_leaf, b_leaf, 0.5, 0}});
    }
    const AutocastGuard autocast(at::kCPU, backward_type);
    auto results = torch::autograd::grad({y}, {leaf, a_leaf, b_leaf}, {dy.narrow(0, 0, rows).to(y.scalar_type())});
    results.push_back(y);
    return results;
  };
  for (const int64_t rows : {6, 3}) {  // and so few that the kernel of few rows would do
    const auto wide = run(at::kFloat, at::kFloat, rows), again = run(at::kFloat, at::kBFloat16, rows);
    const auto narrow = run(at::kBFloat16, at::kFloat, rows);
    for (size_t i = 0; i < wide.size(); ++i) {
      CHECK(at::equal(again[i], wide[i]));
      CHECK(largest_difference(narrow[i], wide[i]) < 0.03 * wide[i].abs().max().item<double>());
    }
    CHECK(narrow.back().scalar_type() == at::kBFloat16);
  }
}

TEST_CASE("frozen_linear: a few rows of bf16 give what many rows give", "[ops]") {
  at::manual_seed(31);
  const auto w1 = at::randn({33, 70}).to(at::kBFloat16), w2 = at::randn({20, 70}).to(at::kBFloat16);
  const ops::FrozenWeights weights{{w1, w2}, nullptr, {}, {33, 20}};
  const auto x = at::randn({9, 70}).to(at::kBFloat16);  // too many for the kernel of few rows
  const auto exact = at::cat({x.to(at::kFloat).mm(w1.to(at::kFloat).t()), x.to(at::kFloat).mm(w2.to(at::kFloat).t())}, 1);
  const auto many = ops::frozen_linear(x, weights, {});
  CHECK(largest_difference(many, exact) < 0.01 * exact.abs().max().item<double>());
  for (const int64_t rows : {1, 3, 4}) {
    const auto few = ops::frozen_linear(x.slice(0, 0, rows), weights, {});
    CHECK(few.scalar_type() == at::kBFloat16);
    CHECK(largest_difference(few, exact.slice(0, 0, rows)) < 0.01 * exact.abs().max().item<double>());
  }
  // An fp32 base under autocast, and a weight that is not contiguous, take the general way.
  const ops::FrozenWeights strided{{w1.t().contiguous().t()}, nullptr, {}, {33}};
  CHECK(largest_difference(ops::frozen_linear(x.slice(0, 0, 1), strided, {}), exact.slice(0, 0, 1).slice(1, 0, 33)) <
        0.01 * exact.abs().max().item<double>());
}

TEST_CASE("packed weights multiply as the plain ones do and come back bit for bit", "[ops]") {
  at::manual_seed(30);
  CHECK_FALSE(ops::PackedWeight::pays(at::kFloat));
  if (!ops::PackedWeight::pays(at::kBFloat16)) {
    WARN("skipped: this processor does not multiply bf16");
    return;
  }
  const auto w1 = at::randn({96, 64}).to(at::kBFloat16), w2 = at::randn({32, 64}).to(at::kBFloat16);
  const auto packed = std::make_shared<const ops::PackedWeight>(std::vector<at::Tensor>{w1, w2}, at::kBFloat16);
  const auto back = packed->unpacked();
  CHECK(at::equal(back[0], w1));
  CHECK(at::equal(back[1], w2));
  CHECK(packed->bytes() == 128 * 64 * 2);
  packed->times_transposed(at::ones({2, 128}, at::kBFloat16));
  CHECK(packed->bytes() == 2 * 128 * 64 * 2);

  const auto x = at::randn({10, 64}).to(at::kBFloat16);
  const auto gradients = [&](const std::shared_ptr<const ops::PackedWeight>& form) {
    const auto leaf = x.detach().clone().requires_grad_();
    const auto a = (at::randn({4, 64}, at::kFloat) * 0).add_(0.1).requires_grad_(), b = at::ones({96, 4}).requires_grad_();
    const auto y = ops::frozen_linear(leaf, {{w1, w2}, form, {}, {96, 32}}, {{a, b, 0.5, 0}});
    y.to(at::kFloat).square().sum().backward();
    return std::vector<at::Tensor>{y, leaf.grad(), a.grad(), b.grad()};
  };
  const auto with = gradients(packed), without = gradients(nullptr);
  for (size_t i = 0; i < with.size(); ++i) {
    CHECK(largest_difference(with[i], without[i]) <= 0.01 * without[i].abs().max().item<double>());
  }
  // A gradient may have any layout.
  for (const auto& form : {packed, std::shared_ptr<const ops::PackedWeight>()}) {
    const auto leaf = x.detach().clone().requires_grad_();
    const auto gradient = [&](const at::Tensor& dy) {
      return torch::autograd::grad({ops::frozen_linear(leaf, {{w1, w2}, form, {}, {96, 32}}, {})}, {leaf}, {dy})[0];
    };
    const auto dy = at::randn({10, 128}).to(at::kBFloat16), one = at::ones({1, 1}, at::kBFloat16);
    CHECK(at::equal(gradient(dy.t().contiguous().t()), gradient(dy)));
    CHECK(at::equal(gradient(one.expand({10, 128})), gradient(one.expand({10, 128}).contiguous())));
  }
  // fp32 does not compute in bf16.
  const auto wide = x.to(at::kFloat), w3 = w1.to(at::kFloat), w4 = w2.to(at::kFloat);
  CHECK(at::equal(ops::frozen_linear(wide, {{w3, w4}, packed, {}, {96, 32}}, {}),
                  ops::frozen_linear(wide, {{w3, w4}, nullptr, {}, {96, 32}}, {})));
}
