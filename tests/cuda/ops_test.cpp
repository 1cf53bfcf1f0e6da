// Every kernel on a GPU against double on the CPU.
#include "lora/ops/ops.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <array>
#include <tuple>

#include "cuda/gpu.h"
#include "lora/ops/batch.h"
#include "lora/ops/prefix_attention.h"
#include "lora/ops/segments.h"
#include "ops/rows.h"

using namespace lora;
using namespace lora::testing;
using Tensors = std::vector<at::Tensor>;

TEST_CASE("gpu: the kernels exist", "[cuda]") {
  LORA_SKIP_WITHOUT_GPU();
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) {
    CHECK(ops::rows::supports(at::empty({1}, at::TensorOptions(kGpu).dtype(dtype))));
  }
}

TEST_CASE("gpu: norms", "[cuda]") {
  LORA_SKIP_WITHOUT_GPU();
  at::manual_seed(1);
  for (const int64_t width : {3, 5, 64, 333, 4096, 5120}) {
    INFO("width " << width);
    const auto x = at::randn({3, 5, width}), delta = at::randn({3, 5, width});
    const auto weight = at::randn({width}), bias = at::randn({width});
    const auto rms = [](bool fused) {
      return [=](const Tensors& in) {
        const auto [sum, y] = ops::add_rms_norm(in[0], in[1], in[2], 1e-5, fused);
        return Tensors{sum, y};
      };
    };
    check_on_gpu(rms(true), rms(false), {x, delta, weight});
    const auto alone = [](bool fused) {
      return [=](const Tensors& in) { return Tensors{ops::add_rms_norm(in[0], {}, in[1], 1e-5, fused).second}; };
    };
    check_on_gpu(alone(true), alone(false), {x, weight});
    const auto layer = [](bool fused) {
      return [=](const Tensors& in) {
        const auto [sum, y] = ops::add_layer_norm(in[0], in[1], 1.7, in[2], in[3], 1e-5, fused);
        return Tensors{sum, y, ops::layer_norm(in[1], in[2], in[3], 1e-5, fused)};
      };
    };
    check_on_gpu(layer(true), layer(false), {x, delta, weight, bias});
  }
}

TEST_CASE("gpu: an fp32 stream with half-precision additions", "[cuda]") {
  LORA_SKIP_WITHOUT_GPU();
  at::manual_seed(2);
  for (const auto dtype : {at::kBFloat16, at::kHalf}) {
    for (const int64_t width : {64, 333}) {
      const auto x = at::randn({7, width}), weight = at::randn({width}), bias = at::randn({width});
      const auto delta = at::randn({7, width}).to(dtype);
      const auto [sum, y] = ops::add_rms_norm(x.to(kGpu), delta.to(kGpu), weight.to(kGpu), 1e-5);
      CHECK(sum.scalar_type() == at::kFloat);
      CHECK(y.scalar_type() == dtype);
      check_near(sum, x + delta, 1e-6);
      check_near(y, ops::rms_norm(x + delta, weight, 1e-5), tolerance_of(dtype));
      const auto layer = ops::add_layer_norm(x.to(kGpu), delta.to(kGpu), 1.7, weight.to(kGpu), bias.to(kGpu), 1e-5);
      check_near(layer.first, x * 1.7 + delta, 1e-6);
      check_near(layer.second, at::layer_norm(x * 1.7 + delta, {width}, weight, bias, 1e-5), tolerance_of(dtype));
    }
  }
}

TEST_CASE("gpu: many rows", "[cuda]") {
  LORA_SKIP_WITHOUT_GPU();
  // More rows than one launch has blocks.
  const int64_t rows = (int64_t{1} << 20) + 77;
  const auto x = at::randn({rows, 8}, at::TensorOptions(kGpu).dtype(at::kFloat)), weight = at::ones({8}, x.options());
  check_near(ops::add_rms_norm(x, {}, weight, 1e-5).second, ops::rms_norm(x, weight, 1e-5), 1e-5);
}

TEST_CASE("gpu: activations", "[cuda]") {
  LORA_SKIP_WITHOUT_GPU();
  at::manual_seed(3);
  for (const int64_t width : {2, 66, 1024, 2 * 11008}) {
    INFO("width " << width);
    const auto x = at::randn({2, 5, width}) * 3;
    check_on_gpu([](const Tensors& in) { return Tensors{ops::swiglu_joined(in[0])}; },
                 [](const Tensors& in) { return Tensors{ops::swiglu_joined(in[0], false)}; }, {x});
    check_on_gpu([](const Tensors& in) { return Tensors{ops::gelu_tanh(in[0])}; },
                 [](const Tensors& in) { return Tensors{ops::gelu_tanh(in[0], false)}; }, {x});
  }
}

TEST_CASE("gpu: heads split and rotated", "[cuda]") {
  LORA_SKIP_WITHOUT_GPU();
  at::manual_seed(4);
  for (const auto& [heads, groups, length, size] :
       std::vector<std::array<int64_t, 4>>{{4, 2, 3, 6}, {8, 8, 37, 64}, {32, 8, 16, 128}}) {
    for (const int64_t table_rows : {1, 2}) {
      const auto angles = at::randn({table_rows, 1, length, size / 2}, at::kDouble);
      const auto split = [&, heads = heads, groups = groups](bool fused) {
        return [&, heads, groups, fused](const Tensors& in) {
          const auto cos = angles.cos().to(in[0].device()), sin = angles.sin().to(in[0].device());
          const auto parts = ops::split_rotated(in[0], cos, sin, heads, groups, fused);
          return Tensors{parts.q_BHSK, parts.k_BGSK, parts.v_BGSK};
        };
      };
      check_on_gpu(split(true), split(false), {at::randn({2, length, (heads + 2 * groups) * size})});
    }
  }
}

TEST_CASE("gpu: loss over several chunks, rows without a target, labels out of range", "[cuda]") {
  LORA_SKIP_WITHOUT_GPU();
  at::manual_seed(5);
  for (const int64_t vocabulary : {31, 32000, 700'001}) {  // the last makes chunks of 64 rows
    const auto hidden = at::randn({70, 8}), weight = at::randn({vocabulary, 8}) * 0.3;
    auto labels = at::randint(vocabulary, {70}, at::kLong);
    labels[3] = kIgnoreLabel;
    labels[64] = kIgnoreLabel;
    const auto loss = [&](bool fused) {
      return [&, fused](const Tensors& in) {
        return Tensors{ops::linear_cross_entropy_sum(in[0], in[1], labels.to(in[0].device()), nullptr, fused)};
      };
    };
    check_on_gpu(loss(true), loss(false), {hidden, weight});
  }
  const auto hidden = at::randn({2, 8}, at::TensorOptions(kGpu)), weight = at::randn({16, 8}, at::TensorOptions(kGpu));
  const auto beyond = at::tensor({1, 16}, at::kLong).to(kGpu);
  CHECK(ops::linear_cross_entropy_sum(hidden, weight, beyond).isnan().item<bool>());
}

TEST_CASE("gpu: causal attention, also with shared key/value heads", "[cuda]") {
  LORA_SKIP_WITHOUT_GPU();
  at::manual_seed(6);
  for (const auto& [heads, groups, length] : std::vector<std::array<int64_t, 3>>{{4, 4, 7}, {4, 2, 130}, {8, 1, 300}}) {
    const auto q = at::randn({2, heads, length, 64}), k = at::randn({2, groups, length, 64}), v = at::randn_like(k);
    const auto attend = [](const Tensors& in) { return Tensors{ops::causal_attention({in[0], in[1], in[2]})}; };
    const auto plain = [](const Tensors& in) { return Tensors{ops::causal_attention({in[0], in[1], in[2]}, false)}; };
    check_on_gpu(attend, plain, {q, k, v}, /*takes_misaligned=*/false);
  }
}

TEST_CASE("gpu: attention by bounds is attention within each sequence", "[cuda]") {
  LORA_SKIP_WITHOUT_GPU();
  at::manual_seed(7);
  const std::vector<int64_t> lengths = {1, 70, 3, 129, 64};
  const auto segments = ops::bounds_of(lengths, kGpu);
  int64_t tokens = 0;
  for (const int64_t length : lengths) tokens += length;
  CHECK_FALSE(ops::attends_by_bounds(kGpu, at::kFloat, 64));
  for (const auto dtype : {at::kBFloat16, at::kHalf}) {
    REQUIRE(ops::attends_by_bounds(kGpu, dtype, 64));
    for (const int64_t groups : {4, 2}) {
      INFO(c10::toString(dtype) << ", " << groups << " groups");
      const Tensors inputs = {at::randn({1, 4, tokens, 64}).to(dtype), at::randn({1, groups, tokens, 64}).to(dtype),
                              at::randn({1, groups, tokens, 64}).to(dtype)};
      Tensors moved, exact;
      for (const auto& input : inputs) moved.push_back(input.to(kGpu)), exact.push_back(input.to(at::kDouble));
      const auto found = results_and_gradients(
          [&](const Tensors& in) {
            return Tensors{ops::attention_by_bounds({in[0], in[1], in[2]}, segments.bounds, segments.longest)};
          },
          moved);
      const auto expected = results_and_gradients(
          [&](const Tensors& in) {
            Tensors parts;
            int64_t begin = 0;
            for (const int64_t length : lengths) {
              const auto of = [&](const at::Tensor& x) { return x.narrow(2, begin, length); };
              parts.push_back(ops::causal_attention({of(in[0]), of(in[1]), of(in[2])}, false));
              begin += length;
            }
            return Tensors{at::cat(parts, 1)};
          },
          exact);
      for (size_t i = 0; i < found.size(); ++i) check_near(found[i], expected[i], tolerance_of(dtype));
    }
  }
}

TEST_CASE("gpu: AdamW of many parameters at once", "[cuda]") {
  LORA_SKIP_WITHOUT_GPU();
  at::manual_seed(8);
  const double rate = 1e-2, decay = 0.1;
  const ops::rows::AdamWStep step{.learning_rate = rate,
                                  .beta1 = 0.9,
                                  .beta2 = 0.999,
                                  .eps = 1e-8,
                                  .weight_decay = decay,
                                  .correction1 = 1,
                                  .correction2 = 1};
  for (const auto dtype : {at::kBFloat16, at::kHalf}) {
    for (const auto gradient_dtype : {dtype, at::kFloat}) {
      std::vector<ops::rows::AdamWTensors> ours;
      Tensors values, gradients, means, squares, steps;
      for (int64_t i = 0; i < 300; ++i) {  // more than one launch takes
        const int64_t size = i == 7 ? 100'003 : i == 8 ? 3 * 8192 : 1 + i;
        const auto parameter = at::randn({size}).to(dtype), gradient = at::randn({size}).to(gradient_dtype);
        const auto there = [](const at::Tensor& x) { return x.to(kGpu, false, /*copy=*/true); };
        values.push_back(parameter.to(at::kFloat));
        gradients.push_back(gradient.to(at::kFloat));
        means.push_back(at::zeros({size})), squares.push_back(at::zeros({size}));
        steps.push_back(at::full({}, static_cast<double>(i % 5)));
        REQUIRE(ops::rows::has_joint_adamw(there(parameter), there(gradient)));
        ours.push_back({there(gradient), there(values.back()), there(means.back()), there(squares.back()),
                        i % 2 == 0 ? there(parameter) : misaligned(there(parameter)), there(steps.back())});
      }
      for (int round = 0; round < 3; ++round) {
        for (auto& count : steps) count.add_(1);
        for (auto& one : ours) one.steps.add_(1);
        ops::rows::joint_adamw(step, /*corrects_bias=*/true, ours);
        at::_fused_adamw_(values, gradients, means, squares, {}, steps, rate, 0.9, 0.999, decay, 1e-8, false, false);
      }
      for (size_t i = 0; i < ours.size(); ++i) {
        INFO("parameter " << i);
        check_near(ours[i].master, values[i], 1e-5);
        check_near(ours[i].exp_avg_sq, squares[i], 1e-5);
        CHECK(at::equal(ours[i].parameter, ours[i].master.to(dtype)));
      }
    }
  }
}

TEST_CASE("gpu: prefix attention", "[cuda]") {
  LORA_SKIP_WITHOUT_GPU();
  at::manual_seed(11);
  for (const auto& contexts : {std::vector<int64_t>{40, 97}, {64, 64}, {130, 1}}) {
    const auto attend = [&](const Tensors& in) {
      return Tensors{ops::prefix_attention({in[0], in[1], in[2]}, ops::contexts_of(contexts, in[0].device()))};
    };
    const auto drawn = [] { return at::randn({2, 4, 130, 64}); };
    check_on_gpu(attend, attend, {drawn(), drawn(), drawn()});
  }
}
