#include "lora/nn/linear.h"

#include <ATen/ATen.h>
#include <torch/utils.h>

#include "catch.h"
#include "lora/core/error.h"
#include "lora/nn/embedding.h"
#include "lora/nn/probe.h"

using namespace lora;

namespace {

/// A full-rank update, enough to see what a slot does with it.
class Update : public nn::Adapter {
 public:
  Update(int64_t in, int64_t out, double value) { matrix = register_parameter("matrix", at::full({out, in}, value, at::kFloat)); }
  at::Tensor delta(const at::Tensor& x) override { return at::linear(x, matrix.to(x.scalar_type())); }
  at::Tensor weight_delta() const override { return matrix.detach(); }
  at::Tensor matrix;
};

nn::Linear linear_with_two_updates() {
  nn::Linear linear(3, 2);
  linear->attach("a", std::make_shared<Update>(3, 2, 0.5));
  linear->attach("b", std::make_shared<Update>(3, 2, -2.0));
  return linear;
}

}  // namespace

TEST_CASE("Linear: active adapters are added in forward, inactive and disabled ones are not", "[nn]") {
  auto linear = linear_with_two_updates();
  const auto x = at::randn({4, 3});
  const auto base = at::linear(x, linear->weight), sum = x.sum(1, true);
  CHECK(at::equal(linear->forward(x), base));
  linear->slot.set_active({"b", "a", "elsewhere"});
  CHECK(at::allclose(linear->forward(x), base - 1.5 * sum, 1e-5, 1e-6));
  linear->slot.set_active({"a"});
  CHECK(at::allclose(linear->forward(x), base + 0.5 * sum, 1e-5, 1e-6));
  linear->slot.set_enabled(false);
  CHECK(at::equal(linear->forward(x), base));
}

TEST_CASE("Linear: merging folds the active update in, unmerging takes it out", "[nn]") {
  auto linear = linear_with_two_updates();
  const auto x = at::randn({4, 3});
  const auto weight = linear->weight.detach().clone();
  linear->slot.set_active({"a", "b"});
  const auto adapted = linear->forward(x);
  linear->merge();
  CHECK(at::allclose(linear->weight, weight - 1.5));
  CHECK(at::allclose(linear->forward(x), adapted, 1e-5, 1e-6));
  CHECK_THROWS_AS(linear->merge(), ConfigError);
  linear->unmerge();
  CHECK(at::allclose(linear->weight, weight, 1e-6, 1e-6));
  CHECK(at::allclose(linear->forward(x), adapted, 1e-5, 1e-6));
}

TEST_CASE("Linear: what is switched off is not merged, and nothing is taken out for it", "[nn]") {
  auto linear = linear_with_two_updates();
  const auto weight = linear->weight.detach().clone();
  linear->slot.set_active({"a"});
  linear->slot.set_enabled(false);
  linear->merge();
  linear->unmerge();
  CHECK(at::equal(linear->weight, weight));
}

TEST_CASE("Linear: a merge that is not finite leaves the weight as it was", "[nn]") {
  nn::Linear linear(3, 2);
  linear->attach("bad", std::make_shared<Update>(3, 2, std::numeric_limits<double>::infinity()));
  linear->slot.set_active({"bad"});
  const auto weight = linear->weight.detach().clone();
  CHECK_THROWS_AS(linear->merge(), NonFiniteError);
  CHECK(at::equal(linear->weight, weight));
}

TEST_CASE("Linear: adapter names are checked, detaching forgets", "[nn]") {
  auto linear = linear_with_two_updates();
  CHECK_THROWS_AS(linear->attach("a", std::make_shared<Update>(3, 2, 1)), ConfigError);
  CHECK_THROWS_AS(linear->attach("a.b", std::make_shared<Update>(3, 2, 1)), ConfigError);
  CHECK_THROWS_AS(linear->attach("", std::make_shared<Update>(3, 2, 1)), ConfigError);
  CHECK(linear->named_parameters().contains("a.matrix"));
  linear->detach("a");
  CHECK_FALSE(linear->named_parameters().contains("a.matrix"));
  CHECK(linear->slot.names() == std::vector<std::string>{"b"});
}

TEST_CASE("Linear: a weight of another type is cast to the input's", "[nn]") {
  nn::Linear linear(8, 4, /*bias=*/true);
  const auto y = linear->forward(at::randn({2, 8}).to(at::kBFloat16));
  CHECK(y.scalar_type() == at::kBFloat16);
  y.sum().backward();
  CHECK(linear->weight.grad().scalar_type() == at::kFloat);
}

TEST_CASE("Linear: a wrong input size is named", "[nn]") {
  nn::Linear linear(8, 4);
  CHECK_THROWS_AS(linear->forward(at::randn({2, 7})), ShapeError);
}

TEST_CASE("Linear: a frozen weight gets no gradient", "[nn]") {
  nn::Linear linear(8, 4);
  linear->weight.set_requires_grad(false);
  const auto x = at::randn({2, 8}).requires_grad_();
  linear->forward(x).sum().backward();
  CHECK(x.grad().defined());
  CHECK_FALSE(linear->weight.grad().defined());
}

TEST_CASE("a probe sees the layers' outputs in order, and only while it lives", "[nn]") {
  nn::Embedding embedding(5, 3);
  nn::Linear linear(3, 2);
  const auto ids = at::tensor({1, 4}, at::kLong);
  std::vector<const torch::nn::Module*> seen;
  {
    const nn::ProbeGuard probe([&](const torch::nn::Module& module, const at::Tensor&) { seen.push_back(&module); });
    linear->forward(embedding->forward(ids));
  }
  linear->forward(embedding->forward(ids));
  CHECK(seen == std::vector<const torch::nn::Module*>{embedding.get(), linear.get()});
}
