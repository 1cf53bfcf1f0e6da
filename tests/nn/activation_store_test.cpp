#include "lora/nn/activation_store.h"

#include <ATen/ATen.h>
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <torch/utils.h>

#include "catch.h"
#include "gradcheck.h"
#include "lora/nn/recompute.h"

using namespace lora;

// Streams and pinned memory need a GPU; what is checked here is the order of things and the values.

TEST_CASE("ActivationStore: what was put comes back bit for bit, in any order and twice", "[nn]") {
  nn::ActivationStore store(at::kCPU);
  std::vector<std::vector<at::Tensor>> tensors;
  std::vector<std::shared_ptr<nn::ActivationStore::Kept>> kept;
  for (int i = 0; i < 4; ++i) {
    tensors.push_back({at::randn({3, 5}), at::randn({2}).to(at::kBFloat16)});
    kept.push_back(store.put(tensors.back()));
  }
  const auto expected = tensors[1][0].clone();
  tensors[1][0].zero_();  // the store has its own
  for (const size_t i : {3, 2, 1, 0, 3, 1}) {
    const auto found = store.take(*kept[i]);
    REQUIRE(found.size() == 2);
    CHECK(at::equal(found[0], i == 1 ? expected : tensors[i][0]));
    CHECK(at::equal(found[1], tensors[i][1]));
  }
  kept[2] = nullptr;  // a part that nobody goes back through
  CHECK(at::equal(store.take(*kept[3])[1], tensors[3][1]));
}

TEST_CASE("ActivationStore: taking one part sends for the one that was put before it", "[nn]") {
  struct Meter : c10::MemoryReportingInfoBase {
    void reportMemoryUsage(void*, int64_t size, size_t, size_t, c10::Device) override { bytes += size; }
    bool memoryProfilingEnabled() const override { return true; }
    int64_t bytes = 0;
  };
  nn::ActivationStore store(at::kCPU);
  const auto first = store.put({at::randn({1000})}), second = store.put({at::randn({1000})});
  const auto meter = std::make_shared<Meter>();
  const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, meter);
  const auto taken = store.take(*second);
  CHECK(meter->bytes == 2 * 4000);
  const auto ahead = store.take(*first);
  CHECK(meter->bytes == 2 * 4000);
}

TEST_CASE("Recomputing from a store gives the same bits, and autograd keeps no input", "[nn]") {
  at::manual_seed(7);
  const auto weight = at::randn({6, 6});
  const auto body = [&](const std::vector<at::Tensor>& in) { return std::vector<at::Tensor>{in[0].mm(weight).tanh()}; };
  const auto input = at::randn({4, 6});
  const auto run = [&](const std::shared_ptr<nn::ActivationStore>& store, bool is_kept) {
    const auto x = input.clone().requires_grad_();
    at::Tensor y = x * 2;
    const c10::weak_intrusive_ptr<at::TensorImpl> between(y.getIntrusivePtr());
    y = nn::recomputed(body, {y}, store)[0];
    CHECK(between.expired() == !is_kept);
    y = nn::recomputed(body, {y}, store)[0];
    y.sum().backward();
    return std::pair(y.detach(), x.grad());
  };
  const auto expected = run(nullptr, true), found = run(std::make_shared<nn::ActivationStore>(at::kCPU), false);
  CHECK(at::equal(found.first, expected.first));
  CHECK(at::equal(found.second, expected.second));
}

TEST_CASE("Recomputing from a store: backward equals finite differences", "[nn]") {
  const auto store = std::make_shared<nn::ActivationStore>(at::kCPU);
  const auto body = [](const std::vector<at::Tensor>& in) { return std::vector<at::Tensor>{in[0].mm(in[1]).sin()}; };
  check_gradients([&](const auto& in) { return nn::recomputed(body, in, store)[0]; },
                  {random_double({2, 3}), random_double({3, 4})});
}
