// The GPU kernels' arithmetic, run on the CPU by teams of ordinary threads: one thread, a few, as many as a warp has, and
// with packs and without. What this cannot show is CUDA's own: launches and shuffles, which tests/cuda looks at on a GPU.
#include "ops/cuda/team_kernels.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <barrier>
#include <thread>
#include <utility>
#include <vector>

#include "catch.h"
#include "lora/ops/ops.h"

using namespace lora;
namespace team = ops::rows::team;

namespace {

/// What the threads of a team share.
struct Meeting {
  explicit Meeting(int size_in) : size(size_in), barrier(size_in), values(static_cast<size_t>(size_in)) {}
  int size;
  std::barrier<> barrier;
  std::vector<double> values;
};

class ThreadTeam {
 public:
  ThreadTeam(Meeting& meeting, int rank) : meeting_(&meeting), rank_(rank) {}
  int64_t rank() const { return rank_; }
  int64_t size() const { return meeting_->size; }
  template <class W>
  W sum(W value) const {
    return together(value, [](W a, W b) { return a + b; });
  }
  template <class W>
  W max(W value) const {
    return together(value, [](W a, W b) { return a > b ? a : b; });
  }

 private:
  template <class W, class Op>
  W together(W value, Op op) const {
    meeting_->values[static_cast<size_t>(rank_)] = value;
    meeting_->barrier.arrive_and_wait();
    W result = static_cast<W>(meeting_->values[0]);
    for (int i = 1; i < meeting_->size; ++i) result = op(result, static_cast<W>(meeting_->values[static_cast<size_t>(i)]));
    meeting_->barrier.arrive_and_wait();
    return result;
  }

  Meeting* meeting_;
  int rank_;
};

/// Calls body(team) on every thread of a team.
template <class Body>
void with_team(int size, const Body& body) {
  Meeting meeting(size);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) threads.emplace_back([&, rank] { body(ThreadTeam(meeting, rank)); });
  for (std::thread& thread : threads) thread.join();
}

template <int kPack, class Program>
void run_rows(int team_size, int64_t rows, const Program& program) {
  with_team(team_size, [&](const ThreadTeam& team) {
    for (int64_t row = 0; row < rows; ++row) program.template run<kPack>(team, row);
  });
}

constexpr int kTeams[] = {1, 3, 32};
constexpr int64_t kRows = 3;

/// Calls body(run) for teams of several sizes, with packs where the width takes them and without; `run(program)` runs all
/// rows of a program.
template <class Body>
void each_way(int64_t width, int widest_pack, const Body& body) {
  for (const int team_size : kTeams) {
    for (const bool packs : {false, true}) {
      if (packs && width % widest_pack != 0) continue;
      INFO("width " << width << ", team of " << team_size << (packs ? ", packs" : ", no packs"));
      body([&](int64_t rows, const auto& program) {
        using Program = std::decay_t<decltype(program)>;
        if (packs) {
          run_rows<Program::kWidestPack>(team_size, rows, program);
        } else {
          run_rows<1>(team_size, rows, program);
        }
      });
    }
  }
}

template <class T>
T* pointer(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<T*>(tensor.data_ptr()) : nullptr;
}

/// Within `tolerance` of the largest expected value.
void check_near(const at::Tensor& found, const at::Tensor& expected, double tolerance) {
  const double scale = std::max(1e-6, expected.to(at::kDouble).abs().max().item<double>());
  CHECK((found.to(at::kDouble) - expected.to(at::kDouble)).abs().max().item<double>() <= tolerance * scale);
}

template <class T>
double tolerance() {
  return sizeof(T) == 8 ? 1e-12 : sizeof(T) == 4 ? 1e-5 : std::is_same_v<T, c10::Half> ? 2e-3 : 1.6e-2;
}

template <class T>
at::ScalarType type_of() {
  return c10::CppTypeToScalarType<T>::value;
}

/// A norm of x + delta by the plain operations in double: the sum, y, and the gradients of sum(y dy + sum dsum).
struct Expected {
  at::Tensor sum, y, dsum;
};

template <class Norm>
Expected expected_norm(const at::Tensor& sum, const at::Tensor& dy, const at::Tensor& dsum, const Norm& norm) {
  const auto leaf = sum.to(at::kDouble).requires_grad_();
  const at::Tensor y = norm(leaf);
  at::Tensor target = (y * dy.to(at::kDouble)).sum();
  if (dsum.defined()) target = target + (leaf * dsum.to(at::kDouble)).sum();
  return {leaf.detach(), y.detach(), torch::autograd::grad({target}, {leaf})[0]};
}

}  // namespace

TEMPLATE_TEST_CASE("team kernels: RMS norm and LayerNorm, forward and backward", "[ops]", (std::pair<float, float>),
                   (std::pair<c10::BFloat16, c10::BFloat16>), (std::pair<c10::Half, c10::Half>),
                   (std::pair<float, c10::BFloat16>), (std::pair<float, c10::Half>), (std::pair<double, double>)) {
  using X = typename TestType::first_type;
  using Y = typename TestType::second_type;
  using W = team::Wide<X>;
  at::manual_seed(1);
  for (const int64_t width : {1, 24, 37, 512}) {
    const auto x_type = type_of<X>(), y_type = type_of<Y>(), wide = type_of<W>();
    const auto x = at::randn({kRows, width}).to(x_type), dsum = at::randn({kRows, width}).to(x_type);
    const auto delta = at::randn({kRows, width}).to(y_type), dy = at::randn({kRows, width}).to(y_type);
    const auto weight = at::randn({width}).to(wide), bias = at::randn({width}).to(wide);
    for (const bool with_delta : {true, false}) {
      const double x_scale = with_delta ? 1.7 : 1;
      const auto rms_sum = with_delta ? (x.to(wide) + delta.to(wide)).to(x_type) : x;
      const auto layer_sum = with_delta ? (x.to(wide) * x_scale + delta.to(wide)).to(x_type) : x;
      const auto rms = expected_norm(rms_sum, dy, with_delta ? dsum : at::Tensor(), [&](const at::Tensor& v) {
        return v * at::rsqrt(v.square().mean(-1, true) + 1e-3) * weight.to(at::kDouble);
      });
      const auto layer = expected_norm(layer_sum, dy, with_delta ? dsum : at::Tensor(), [&](const at::Tensor& v) {
        return at::layer_norm(v, {width}, weight.to(at::kDouble), bias.to(at::kDouble), 1e-3);
      });
      each_way(width, team::kPackOf<Y>, [&](const auto& run) {
        auto sum = with_delta ? at::empty_like(x) : x, y = at::empty_like(dy), dx = at::empty_like(x);
        const auto first = at::empty({kRows}, wide), second = at::empty({kRows}, wide);
        const Y* of_delta = with_delta ? pointer<Y>(delta) : nullptr;
        const X* of_dsum = with_delta ? pointer<X>(dsum) : nullptr;
        run(kRows, team::AddRmsNorm<X, Y>{pointer<X>(x), of_delta, pointer<W>(weight), W(1e-3), width, pointer<X>(sum),
                                          pointer<Y>(y), pointer<W>(first)});
        check_near(sum, rms.sum, 1e-7);
        check_near(y, rms.y, tolerance<Y>());
        run(kRows, team::RmsNormBackward<X, Y>{pointer<Y>(dy), of_dsum, pointer<X>(sum), pointer<W>(weight), pointer<W>(first),
                                               width, pointer<X>(dx)});
        check_near(dx, rms.dsum, tolerance<X>());

        run(kRows, team::AddLayerNorm<X, Y>{pointer<X>(x), of_delta, W(x_scale), pointer<W>(weight), pointer<W>(bias), W(1e-3),
                                            width, pointer<X>(sum), pointer<Y>(y), pointer<W>(first), pointer<W>(second)});
        check_near(sum, layer.sum, tolerance<X>());
        check_near(y, layer.y, 2 * tolerance<Y>());
        run(kRows, team::LayerNormBackward<X, Y>{pointer<Y>(dy), of_dsum, pointer<X>(sum), pointer<W>(weight), pointer<W>(first),
                                                 pointer<W>(second), width, pointer<X>(dx)});
        check_near(dx, layer.dsum, 2 * tolerance<X>());
      });
    }
  }
}

TEMPLATE_TEST_CASE("team kernels: SwiGLU and GELU-tanh, forward and backward", "[ops]", float, double, c10::BFloat16, c10::Half) {
  using T = TestType;
  at::manual_seed(2);
  for (const int64_t width : {1, 24, 37}) {
    const auto x = (at::randn({kRows, width}) * 3).to(type_of<T>()), dy = at::randn({kRows, width}).to(type_of<T>());
    const auto gate_up = (at::randn({kRows, 2 * width}) * 3).to(type_of<T>());
    const auto leaf = x.to(at::kDouble).requires_grad_(), pair = gate_up.to(at::kDouble).requires_grad_();
    const auto gelu = at::gelu(leaf, "tanh");
    const auto halves = pair.chunk(2, -1);
    const auto glu = at::silu(halves[0]) * halves[1];
    const auto dgelu = torch::autograd::grad({gelu}, {leaf}, {dy.to(at::kDouble)})[0];
    const auto dglu = torch::autograd::grad({glu}, {pair}, {dy.to(at::kDouble)})[0];
    each_way(width, team::kPackOf<T>, [&](const auto& run) {
      const auto y = at::empty_like(x), dx = at::empty_like(x), dgate_up = at::empty_like(gate_up);
      run(kRows, team::GeluTanh<T>{pointer<T>(x), width, pointer<T>(y)});
      check_near(y, gelu, tolerance<T>());
      run(kRows, team::GeluTanhBackward<T>{pointer<T>(dy), pointer<T>(x), width, pointer<T>(dx)});
      check_near(dx, dgelu, tolerance<T>());
      run(kRows, team::SwiGlu<T>{pointer<T>(gate_up), width, pointer<T>(y)});
      check_near(y, glu, tolerance<T>());
      run(kRows, team::SwiGluBackward<T>{pointer<T>(dy), pointer<T>(gate_up), width, pointer<T>(dgate_up)});
      check_near(dgate_up, dglu, tolerance<T>());
    });
  }
}

TEMPLATE_TEST_CASE("team kernels: cross-entropy with its gradient in place", "[ops]", float, double, c10::BFloat16, c10::Half) {
  using T = TestType;
  at::manual_seed(3);
  for (const int64_t width : {5, 24, 331}) {
    const auto logits = (at::randn({5, width}) * 4).to(type_of<T>());
    const auto labels = at::tensor({int64_t{0}, width - 1, int64_t{-100}, width / 2, width}, at::kLong);
    const auto leaf = logits.to(at::kDouble).slice(0, 0, 4).detach().requires_grad_();
    const auto expected = at::cross_entropy_loss(leaf, labels.slice(0, 0, 4), {}, at::Reduction::None);
    const auto gradient = torch::autograd::grad({expected.sum()}, {leaf})[0];
    each_way(width, team::kPackOf<T>, [&](const auto& run) {
      const auto losses = at::empty({5}, type_of<team::Wide<T>>());
      auto work = logits.clone();
      const auto program = [&](bool with_gradient) {
        return team::CrossEntropy<T>{pointer<T>(work), labels.const_data_ptr<int64_t>(), with_gradient, width,
                                     pointer<team::Wide<T>>(losses)};
      };
      run(5, program(false));
      CHECK(at::equal(work, logits));
      check_near(losses.slice(0, 0, 4), expected, 1e-5);
      CHECK(losses[4].isnan().template item<bool>());  // a label beyond the vocabulary
      run(5, program(true));
      check_near(losses.slice(0, 0, 4), expected, 1e-5);
      check_near(work.slice(0, 0, 4), gradient, tolerance<T>());
    });
  }
}

TEMPLATE_TEST_CASE("team kernels: heads split, rotated and joined", "[ops]", float, double, c10::BFloat16, c10::Half) {
  using T = TestType;
  using W = team::Wide<T>;
  at::manual_seed(4);
  const int64_t batch = 2, length = 3, heads = 4, groups = 2;
  for (const int64_t size : {6, 32}) {
    for (const int64_t table_rows : {1, 2}) {
      const auto angles = at::randn({table_rows, 1, length, size / 2}, type_of<W>());
      const auto cos = angles.cos(), sin = angles.sin();
      const auto qkv = at::randn({batch, length, (heads + 2 * groups) * size}).to(type_of<T>());
      const auto leaf = qkv.to(at::kDouble).requires_grad_();
      const auto parts = ops::split_rotated(leaf, cos.to(at::kDouble), sin.to(at::kDouble), heads, groups, /*fused=*/false);
      each_way(size / 2, team::kPackOf<T>, [&](const auto& run) {
        const auto q = at::empty(parts.q_BHSK.sizes(), qkv.options()), k = at::empty(parts.k_BGSK.sizes(), qkv.options());
        const auto v = at::empty_like(k);
        auto joined = qkv.clone();
        const auto program = [&](bool splits) {
          return team::MoveHeads<T>{pointer<T>(joined),
                                    pointer<T>(q),
                                    pointer<T>(k),
                                    pointer<T>(v),
                                    pointer<W>(cos),
                                    pointer<W>(sin),
                                    heads,
                                    groups,
                                    length,
                                    size,
                                    table_rows == 1 ? 0 : length * (size / 2),
                                    splits};
        };
        run(batch * length, program(true));
        check_near(q, parts.q_BHSK, tolerance<T>());
        check_near(k, parts.k_BGSK, tolerance<T>());
        CHECK(at::equal(v.to(at::kDouble), parts.v_BGSK));
        const auto gradient = torch::autograd::grad({parts.q_BHSK, parts.k_BGSK, parts.v_BGSK}, {leaf},
                                                    {q.to(at::kDouble), k.to(at::kDouble), v.to(at::kDouble)},
                                                    /*retain_graph=*/true)[0];
        joined.zero_();
        run(batch * length, program(false));
        check_near(joined, gradient, tolerance<T>());
      });
    }
  }
}

TEMPLATE_TEST_CASE("team kernels: AdamW equals torch.optim's numbers over several steps", "[ops]",
                   (std::pair<c10::BFloat16, c10::BFloat16>), (std::pair<float, c10::BFloat16>),
                   (std::pair<c10::Half, c10::Half>), (std::pair<float, c10::Half>)) {
  using G = typename TestType::first_type;
  using P = typename TestType::second_type;
  at::manual_seed(5);
  const double rate = 1e-2, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, decay = 0.1;
  for (const int64_t size : {7, 64}) {
    for (const int team_size : kTeams) {
      const auto start = at::randn({size});
      auto parameter = start.to(type_of<P>()), master = parameter.to(at::kFloat), m = at::zeros({size}), v = at::zeros({size});
      auto expected = master.clone(), expected_m = at::zeros({size}), expected_v = at::zeros({size}), steps = at::zeros({});
      for (int step = 1; step <= 3; ++step) {
        const auto gradient = at::randn({size}).to(type_of<G>());
        steps.add_(1);
        at::_fused_adamw_({expected}, {gradient.to(at::kFloat)}, {expected_m}, {expected_v}, {}, {steps}, rate, beta1, beta2,
                          decay, eps, false, false);
        const team::AdamWNumbers numbers{
            .one_minus_beta1 = static_cast<float>(1 - beta1),
            .beta2 = static_cast<float>(beta2),
            .one_minus_beta2 = static_cast<float>(1 - beta2),
            .eps = static_cast<float>(eps),
            .decay = static_cast<float>(1 - rate * decay),
            .rate = static_cast<float>(rate / team::bias_correction(beta1, step)),
            .inverse_root_correction2 = static_cast<float>(1 / std::sqrt(team::bias_correction(beta2, step)))};
        const team::AdamW<G, P> program{pointer<G>(gradient), pointer<float>(master), pointer<float>(m), pointer<float>(v),
                                        pointer<P>(parameter)};
        with_team(team_size, [&](const ThreadTeam& team) {
          const int64_t half = size / 8 * 4;  // two chunks
          program.template run<4>(team, numbers, 0, half);
          if (size % 4 == 0) {
            program.template run<4>(team, numbers, half, size);
          } else {
            program.template run<1>(team, numbers, half, size);
          }
        });
      }
      check_near(master, expected, 1e-5);
      check_near(m, expected_m, 1e-5);
      check_near(v, expected_v, 1e-5);
      CHECK(at::equal(parameter, master.to(type_of<P>())));
    }
  }
}
