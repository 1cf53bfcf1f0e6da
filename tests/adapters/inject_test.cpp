#include "lora/adapters/inject.h"

#include <algorithm>

#include "adapters/fake_llama.h"
#include "captured_log.h"
#include "lora/core/error.h"
#include "support.h"

using namespace lora;
using testing::difference;
using testing::FakeLlama;
using testing::message_of;
using Names = std::vector<std::string>;

namespace {

const testing::FakeSizes kSmall{.hidden = 8, .intermediate = 12, .vocab = 128, .layers = 2};

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

Names trainable(const AdapterSet& set) {
  Names names;
  for (const auto& [name, tensor] : set.named_parameters()) {
    if (tensor.requires_grad()) names.push_back(name);
  }
  return names;
}

}  // namespace

TEST_CASE("a fresh adapter leaves the output bit by bit", "[adapters]") {
  FakeLlama model(kSmall);
  const auto ids = testing::some_ids();
  const auto before = model.forward(ids);
  const auto set = inject(model, {.targets = Names{"q_proj", "up_proj", "embed_tokens", "lm_head"}});
  CHECK(set.slots().size() == 6);
  CHECK(set.is_active());
  CHECK(at::equal(model.forward(ids), before));
  testing::randomize(set.parameters());
  CHECK(difference(model.forward(ids), before) > 1e-3);
}

TEST_CASE("adapter parameters are the model's, fp32, trainable and last to change others", "[adapters]") {
  FakeLlama model(kSmall);
  model.to(at::kBFloat16);
  for (auto& parameter : model.parameters()) parameter.set_requires_grad(false);
  const auto set = inject(model, {.rank = 3, .targets = Names{"q_proj"}});
  const std::string first = "model.layers.0.self_attn.q_proj.default.lora_A";
  CHECK(set.names().front() == first);
  CHECK(set.names().size() == 4);
  const auto parameters = model.named_parameters();
  REQUIRE(parameters.contains(first));
  CHECK(parameters[first].is_same(set.parameters().front()));
  CHECK(parameters[first].scalar_type() == at::kFloat);
  CHECK(parameters[first].sizes() == at::IntArrayRef({3, 8}));
  for (const auto& parameter : parameters) {
    CHECK(parameter.value().requires_grad() == contains(parameter.key(), "lora_"));
  }
}

TEST_CASE("a new adapter follows the model's training mode, now and later", "[adapters]") {
  FakeLlama model(kSmall);
  model.eval();
  const auto set = inject(model, {});
  CHECK_FALSE(set.slots().front().adapter->is_training());
  model.train();
  CHECK(set.slots().front().adapter->is_training());
}

TEST_CASE("patterns give single modules their own rank and alpha", "[adapters]") {
  FakeLlama model(kSmall);
  const auto set = inject(model, {.rank = 2,
                                  .alpha = 4,
                                  .targets = Names{"q_proj", "up_proj"},
                                  .rank_pattern = {{R"(layers\.1\.mlp\.up_proj)", 3}, {"q_proj", 5}},
                                  .alpha_pattern = {{"q_proj", 10}}});
  std::map<std::string, std::pair<int64_t, double>> found;
  for (const auto& slot : set.slots()) {
    const auto& lora = dynamic_cast<const LoraLinear&>(*slot.adapter);
    found[slot.path] = {lora.rank(), lora.scale()};
  }
  CHECK(found.at("model.layers.0.self_attn.q_proj") == std::pair<int64_t, double>(5, 2));
  CHECK(found.at("model.layers.0.mlp.up_proj") == std::pair<int64_t, double>(2, 2));
  CHECK(found.at("model.layers.1.mlp.up_proj") == std::pair<int64_t, double>(3, 4.0 / 3));
}

TEST_CASE("bad names and options leave the model as it was", "[adapters]") {
  FakeLlama model(kSmall);
  inject(model, {}, "first");
  const auto num_modules = model.modules(false).size();
  const auto text = message_of<ConfigError>([&] { inject(model, {}, "first"); });
  CHECK(contains(text, "unique"));
  message_of<ConfigError>([&] { inject(model, {}, ""); });
  message_of<ConfigError>([&] { inject(model, {}, "a.b"); });
  CHECK(contains(message_of<ConfigError>([&] { inject(model, {}, "my_lora"); }), "must not contain \"lora\""));
  message_of<ConfigError>([&] { inject(model, {.bias = "some"}, "second"); });
  message_of<ConfigError>([&] { inject(model, {.targets = Names{"nothing"}}, "second"); });
  message_of<ConfigError>([&] { inject(model, {.rank_pattern = {{"v_proj", 0}}}, "second"); });
  message_of<ConfigError>([&] { inject(model, {.modules_to_save = {"nothing"}}, "second"); });
  message_of<ConfigError>([&] { inject(model, {.modules_to_save = {"self_attn"}}, "second"); });
  CHECK(model.modules(false).size() == num_modules);
  CHECK(active_adapters(model) == Names{"first"});
}

TEST_CASE("a name that one layer alone has taken is refused", "[adapters]") {
  FakeLlama model(kSmall);
  auto& q = model.attention(1).q_proj;
  q->attach("own", std::make_shared<LoraLinear>(q->layout(), 2, 2, LoraOptions{}));
  const auto text = message_of<ConfigError>([&] { inject(model, {}, "own"); });
  CHECK(contains(text, "model.layers.1.self_attn.q_proj"));
  CHECK(model.attention(0).q_proj->slot.names().empty());
}

TEST_CASE("tied weights are refused where they would be adapted or saved", "[adapters]") {
  FakeLlama model(kSmall);
  model.lm_head->weight.set_data(model.model->embed_tokens->weight.detach());
  const auto text = message_of<ConfigError>([&] { inject(model, {.targets = Names{"embed_tokens"}}); });
  CHECK(contains(text, "model.embed_tokens.weight"));
  CHECK(contains(text, "lm_head.weight"));
  message_of<ConfigError>([&] { inject(model, {.targets = Names{"lm_head"}}); });
  message_of<ConfigError>([&] { inject(model, {.modules_to_save = {"lm_head"}}); });
  inject(model, {.targets = "all-linear"});
}

TEST_CASE("what can be adapted is listed without adapters", "[adapters]") {
  FakeLlama model(kSmall);
  const auto before = adaptable_modules(model);
  CHECK(before.size() == 16);
  CHECK(before.front() == "model.embed_tokens");
  inject(model, {});
  CHECK(adaptable_modules(model) == before);
}

TEST_CASE("several adapters add up in the order of activation", "[adapters]") {
  FakeLlama model(kSmall);
  const auto a = inject(model, {.targets = Names{"q_proj"}}, "a");
  const auto b = inject(model, {.targets = Names{"q_proj", "v_proj"}}, "b");
  testing::randomize(a.parameters());
  testing::randomize(b.parameters());
  CHECK(active_adapters(model) == Names{"b"});
  CHECK(trainable(a).empty());
  CHECK(trainable(b).size() == 8);

  set_active_adapters(model, {"b", "a"});
  CHECK(active_adapters(model) == Names{"b", "a"});
  CHECK(trainable(a).size() == 4);
  CHECK(trainable(b).size() == 8);
  auto& attention = model.attention(0);
  CHECK(attention.q_proj->slot.active() == Names{"b", "a"});
  CHECK(attention.v_proj->slot.active() == Names{"b"});
  const auto x = at::randn({3, 8});
  auto& q = attention.q_proj;
  const auto expected = q->base_forward(x) + q->slot.find("a")->delta(x) + q->slot.find("b")->delta(x);
  CHECK(difference(q->forward(x), expected) < 1e-6);

  set_active_adapters(model, {});
  CHECK(active_adapters(model).empty());
  CHECK(at::equal(q->forward(x), q->base_forward(x)));
  CHECK(contains(message_of<ConfigError>([&] { set_active_adapters(model, {"c"}); }), "a, b"));
}

TEST_CASE("setting adapters unmerges and switches on", "[adapters]") {
  FakeLlama model(kSmall);
  auto a = inject(model, {}, "a");
  testing::randomize(a.parameters());
  auto& q = model.attention(0).q_proj;
  const auto base = q->weight.detach().clone();
  a.merge();
  CHECK(difference(q->weight, base) > 1e-4);
  const auto b = inject(model, {}, "b");
  CHECK(difference(q->weight, base) < 1e-6);
  CHECK(q->slot.merged().empty());
  a.set_enabled(false);
  CHECK_FALSE(q->slot.enabled());
  set_active_adapters(model, {"a"});
  CHECK(q->slot.enabled());
}

TEST_CASE("a removed adapter leaves no trace, and another takes over", "[adapters]") {
  FakeLlama model(kSmall);
  const auto ids = testing::some_ids();
  const auto before = model.forward(ids);
  const auto num_modules = model.modules(false).size();
  const auto a = inject(model, {}, "a");
  auto b = inject(model, {.modules_to_save = {"lm_head"}}, "b");
  testing::randomize(a.parameters());
  testing::randomize(b.parameters());
  b.merge();

  remove_adapter(model, "b");
  CHECK(active_adapters(model) == Names{"a"});
  CHECK(trainable(a).size() == 8);
  CHECK(adapters_of(model).size() == 1);
  remove_adapter(model, "a");
  CHECK(active_adapters(model).empty());
  CHECK(model.modules(false).size() == num_modules + 1);  // the empty record
  CHECK(difference(model.forward(ids), before) < 1e-5);
  message_of<ConfigError>([&] { remove_adapter(model, "a"); });
  inject(model, {}, "a");
}

TEST_CASE("a removed adapter that was not the only active one leaves the others active", "[adapters]") {
  FakeLlama model(kSmall);
  for (const char* name : {"a", "b", "c"}) inject(model, {}, name);
  set_active_adapters(model, {"c", "b"});
  remove_adapter(model, "c");
  CHECK(active_adapters(model) == Names{"b"});
}

TEST_CASE("modules to save train as fp32 copies and come and go with their adapter", "[adapters]") {
  FakeLlama model(kSmall);
  model.to(at::kBFloat16);
  const auto head = model.lm_head->weight;
  const auto base = head.detach().clone();
  const auto a = inject(model, {.targets = Names{"q_proj"}, .modules_to_save = {"lm_head", "input_layernorm"}}, "a");
  REQUIRE(a.saved_parameters().size() == 3);
  CHECK(a.names().back() == "lm_head.weight");
  CHECK(head.scalar_type() == at::kFloat);
  CHECK(head.requires_grad());
  CHECK(difference(head, base) == 0);
  const auto ids = testing::some_ids();
  CHECK(model.forward(ids).scalar_type() == at::kBFloat16);
  testing::randomize({head});
  const auto trained = head.detach().clone();

  auto b = inject(model, {.targets = Names{"q_proj"}}, "b");
  CHECK(head.scalar_type() == at::kBFloat16);
  CHECK(at::equal(head, base));
  CHECK_FALSE(head.requires_grad());
  set_active_adapters(model, {"a"});
  CHECK(at::equal(head, trained));
  CHECK(head.requires_grad());
  remove_adapter(model, "a");
  CHECK(at::equal(head, base));
}

TEST_CASE("a released weight is there again when its module is saved", "[adapters]") {
  FakeLlama model(kSmall);
  const auto base = model.lm_head->weight.detach().clone();
  model.lm_head->release_weight([base] { return base.clone(); });
  inject(model, {.targets = Names{"q_proj"}, .modules_to_save = {"lm_head"}});
  CHECK(at::equal(model.lm_head->weight, base));
}

TEST_CASE("a module that is saved leaves no gradient to the values that take its place", "[adapters]") {
  FakeLlama model(kSmall);
  inject(model, {.targets = Names{"q_proj"}, .modules_to_save = {"lm_head"}}, "a");
  auto head = model.lm_head->weight;
  head.mutable_grad() = at::ones_like(head);
  set_active_adapters(model, {});
  CHECK_FALSE(head.grad().defined());
}

TEST_CASE("two adapters may save one module, but not be active together", "[adapters]") {
  FakeLlama model(kSmall);
  const auto head = model.lm_head->weight;
  const auto base = head.detach().clone();
  inject(model, {.modules_to_save = {"lm_head"}}, "a");
  testing::randomize({head});
  const auto of_a = head.detach().clone();
  inject(model, {.modules_to_save = {"lm_head"}}, "b");
  CHECK(at::equal(head, base));
  const auto text = message_of<ConfigError>([&] { set_active_adapters(model, {"a", "b"}); });
  CHECK(contains(text, "lm_head.weight"));
  CHECK(active_adapters(model) == Names{"b"});
  set_active_adapters(model, {"a"});
  CHECK(at::equal(head, of_a));
  remove_adapter(model, "a");
  CHECK(at::equal(head, base));
}

TEST_CASE("base biases train when asked", "[adapters]") {
  testing::Mlp model;
  model.to(at::kBFloat16);
  const auto base = model.up->bias.detach().clone();
  SECTION("lora_only") {
    const auto set = inject(model, {.bias = "lora_only", .targets = Names{"up"}});
    CHECK(set.names() == Names{"up.default.lora_A", "up.default.lora_B", "up.bias"});
    CHECK(model.up->bias.scalar_type() == at::kFloat);
    CHECK(model.down->bias.scalar_type() == at::kBFloat16);
  }
  SECTION("all") {
    const auto set = inject(model, {.bias = "all", .targets = Names{"up"}});
    CHECK(set.names() == Names{"up.default.lora_A", "up.default.lora_B", "up.bias", "down.bias"});
    CHECK(model.down->bias.requires_grad());
  }
  testing::randomize({model.up->bias});
  CHECK(difference(model.up->bias, base) > 1e-3);
  remove_adapter(model, "default");
  CHECK(at::equal(model.up->bias, base));
}

TEST_CASE("biases that do not exist are warned about", "[adapters]") {
  FakeLlama model(kSmall);
  CHECK(contains(testing::captured_log([&] { inject(model, {.bias = "all"}); }), "none will train"));
}
