#include "lora/adapters/adapter_rows.h"

#include "adapters/fake_llama.h"
#include "adapters/state.h"
#include "lora/adapters/inject.h"
#include "lora/core/error.h"
#include "support.h"

using namespace lora;
using testing::difference;
using testing::FakeLlama;
using testing::message_of;
using Names = std::vector<std::string>;

namespace {

/// In double, with two adapters that share some layers, the head and the embedding among them.
struct TwoAdapters {
  TwoAdapters() {
    model.to(at::kDouble);
    add("a", {.rank = 4, .alpha = 8, .targets = Names{"q_proj", "up_proj", "embed_tokens"}});
    add("b", {.rank = 2, .alpha = 3, .targets = Names{"q_proj", "down_proj", "lm_head"}});
    model.eval();
  }
  void add(const std::string& name, const LoraOptions& options) {
    auto set = inject(model, options, name);
    for (const auto& slot : set.slots()) slot.adapter->to(at::kDouble);
    testing::randomize(set.parameters(), 0.3);
  }
  at::Tensor alone(const std::string& name, const at::Tensor& ids) {
    const auto before = active_adapters(model);
    set_active_adapters(model, name == kBaseRows ? Names{} : Names{name});
    const at::Tensor result = model.forward(ids);
    set_active_adapters(model, before);
    return result;
  }

  FakeLlama model{{.hidden = 8, .intermediate = 12, .vocab = 128, .layers = 2}};
};

}  // namespace

TEST_CASE("every row of a batch gets the adapter that it names", "[adapters]") {
  const torch::NoGradGuard no_grad;
  at::manual_seed(1);
  TwoAdapters two;
  const at::Tensor ids = at::randint(0, 128, {5, 7}, at::kLong);
  for (const Names& names : {Names{"a", "b", "__base__", "b", "a"}, Names{"b", "b", "b", "b", "b"},
                             Names{"__base__", "__base__", "__base__", "__base__", "a"}}) {
    at::Tensor together;
    {
      const AdapterRows rows(two.model, names);
      together = two.model.forward(ids);
    }
    for (int64_t i = 0; i < 5; ++i) {
      INFO(i << " " << names[i]);
      CHECK(difference(together.narrow(0, i, 1), two.alone(names[i], ids.narrow(0, i, 1))) < 1e-12);
    }
  }
  const at::Tensor row = ids.narrow(0, 0, 1);
  CHECK(difference(two.alone("a", row), two.alone("b", row)) > 1e-3);
  CHECK(difference(two.alone("a", row), two.alone("__base__", row)) > 1e-3);
}

TEST_CASE("rows choose their adapters for the time of the choice alone", "[adapters]") {
  const torch::NoGradGuard no_grad;
  at::manual_seed(2);
  TwoAdapters two;
  set_active_adapters(two.model, {"a"});
  const at::Tensor ids = at::randint(0, 128, {2, 3}, at::kLong), active = two.model.forward(ids);
  {
    const AdapterRows rows(two.model, {"b", "b"});
    const at::Tensor outer = two.model.forward(ids);
    {
      const AdapterRows inner(two.model, {"a", "a"});
      CHECK(difference(two.model.forward(ids), active) < 1e-12);
    }
    CHECK(at::equal(two.model.forward(ids), outer));
    CHECK(difference(outer, active) > 1e-3);
  }
  CHECK(at::equal(two.model.forward(ids), active));
  CHECK(active_adapters(two.model) == Names{"a"});
}

TEST_CASE("another model on the same thread keeps its own adapters", "[adapters]") {
  const torch::NoGradGuard no_grad;
  at::manual_seed(3);
  TwoAdapters one, other;
  const at::Tensor ids = at::randint(0, 128, {3, 3}, at::kLong), before = other.model.forward(ids);
  const AdapterRows rows(one.model, {"a", "b"});
  CHECK(at::equal(other.model.forward(ids), before));
}

TEST_CASE("rows that cannot choose are refused", "[adapters]") {
  at::manual_seed(4);
  TwoAdapters two;
  const auto refusal = [&](const Names& names) {
    return message_of<ConfigError>([&] { const AdapterRows rows(two.model, names); });
  };
  CHECK(refusal({"a", "c"}).find("\"c\"") != std::string::npos);
  CHECK(refusal({"a", ""}).find("__base__") != std::string::npos);
  two.model.train();
  CHECK(refusal({"a", "b"}).find("training") != std::string::npos);
  two.model.eval();

  const at::Tensor ids = at::randint(0, 128, {3, 4}, at::kLong);
  {
    const AdapterRows rows(two.model, {"a", "b"});
    const auto text = message_of<ShapeError>([&] { two.model.forward(ids); });
    CHECK(text.find("2 rows; found an input of [3, 4]") != std::string::npos);
    CHECK_NOTHROW(two.model.forward(ids.narrow(0, 0, 2)));
  }
  for (auto& set : adapters_of(two.model)) {
    if (set.name() == "b") set.set_enabled(false);
  }
  CHECK(refusal({"a"}).find("switched on") != std::string::npos);
  set_active_adapters(two.model, {"b"});
  for (auto& set : adapters_of(two.model)) {
    if (set.name() == "b") set.merge();
  }
  CHECK(refusal({"a"}).find("merged") != std::string::npos);
  set_active_adapters(two.model, {"a"});
  CHECK_NOTHROW(AdapterRows(two.model, {"a"}));

  two.add("whole", {.targets = Names{"q_proj"}, .modules_to_save = {"norm"}});
  two.model.eval();
  CHECK(refusal({"a"}).find("activate another") != std::string::npos);
  set_active_adapters(two.model, {"a"});
  CHECK_NOTHROW(AdapterRows(two.model, {"a"}));
  CHECK(refusal({"whole"}).find("modules_to_save") != std::string::npos);
}

TEST_CASE("an adapter of another method serves no rows", "[adapters]") {
  struct Scaling : nn::Adapter {
    at::Tensor delta(const at::Tensor& x) override { return x; }
    at::Tensor weight_delta() const override { return {}; }
  };
  TwoAdapters two;
  for (auto& set : adapters_of(two.model)) {
    if (set.name() != "a") continue;
    for (auto& slot : set.state().slots) slot.adapter = std::make_shared<Scaling>();
  }
  const auto text = message_of<ConfigError>([&] { const AdapterRows rows(two.model, {"a"}); });
  CHECK(text.find("another method") != std::string::npos);
  CHECK_NOTHROW(AdapterRows(two.model, {"b"}));
}
