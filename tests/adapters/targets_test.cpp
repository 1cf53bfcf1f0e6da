#include "adapters/targets.h"

#include <algorithm>

#include "adapters/fake_llama.h"
#include "captured_log.h"
#include "lora/core/error.h"
#include "support.h"

using namespace lora;
using testing::captured_log;
using testing::message_of;
using Names = std::vector<std::string>;

namespace {

const std::string kLayer0 = "model.layers.0.", kLayer1 = "model.layers.1.";

Names selected(const torch::nn::Module& model, TargetRule& options) {
  Names paths;
  for (const auto& named : adapters::select_targets(model, adapters::base_modules(model), options)) {
    paths.push_back(named.path);
  }
  return paths;
}

Names selected(TargetRule options) {
  const testing::FakeLlama model({.hidden = 4, .intermediate = 6, .vocab = 8, .layers = 2});
  return selected(model, options);
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("a list matches names and dot suffixes", "[adapters]") {
  CHECK(selected({.targets = Names{"q_proj", "mlp.up_proj"}}) ==
        Names{kLayer0 + "self_attn.q_proj", kLayer0 + "mlp.up_proj", kLayer1 + "self_attn.q_proj", kLayer1 + "mlp.up_proj"});
  CHECK(selected({.targets = Names{"lm_head"}}) == Names{"lm_head"});
  CHECK(selected({.targets = Names{"embed_tokens"}}) == Names{"model.embed_tokens"});
  CHECK(selected({.targets = Names{"q_proj", "v_proj"}}) == Names{kLayer0 + "self_attn.q_proj", kLayer0 + "self_attn.v_proj",
                                                                  kLayer1 + "self_attn.q_proj", kLayer1 + "self_attn.v_proj"});
}

TEST_CASE("a string is an expression over the whole path", "[adapters]") {
  CHECK(selected({.targets = R"(.*\.0\..*(gate|up)_proj)"}) == Names{kLayer0 + "mlp.gate_proj", kLayer0 + "mlp.up_proj"});
  const auto text = message_of<ConfigError>([] { selected({.targets = "q_proj"}); });
  CHECK(contains(text, "regular expression over the whole path"));
  CHECK(contains(text, "q_proj, "));
}

TEST_CASE("exclude, layers and modules to save take away", "[adapters]") {
  CHECK(selected({.targets = Names{"q_proj"}, .exclude = Names{kLayer0 + "self_attn.q_proj"}}) ==
        Names{kLayer1 + "self_attn.q_proj"});
  CHECK(selected({.targets = Names{"q_proj"}, .exclude = R"(.*\.1\..*)"}) == Names{kLayer0 + "self_attn.q_proj"});
  CHECK(selected({.targets = Names{"q_proj"}, .layers_to_transform = std::vector<int64_t>{1}}) ==
        Names{kLayer1 + "self_attn.q_proj"});
  CHECK(selected({.targets = Names{"lm_head", "q_proj"}, .modules_to_save = {"lm_head"}}).size() == 2);
  const auto text =
      message_of<ConfigError>([] { selected({.targets = Names{"q_proj"}, .layers_to_transform = std::vector<int64_t>{7}}); });
  CHECK(contains(text, "layers_to_transform"));
}

TEST_CASE("no match names what is near and how much could be adapted", "[adapters]") {
  const auto text = message_of<ConfigError>([] { selected({.targets = Names{"q_prj"}}); });
  CHECK(contains(text, "q_prj"));
  CHECK(contains(text, "near names are: q_proj, "));
  CHECK(contains(text, "16 modules"));  // 2 layers of 7, the head, the embedding
  CHECK(contains(message_of<ConfigError>([] { selected({.targets = Names{}}); }), "empty list"));

  const torch::nn::ModuleList bare;
  TargetRule options;
  CHECK(contains(message_of<ConfigError>([&] { selected(*bare, options); }), "lora::nn::Linear"));
}

TEST_CASE("a target that cannot take an adapter is named with its type", "[adapters]") {
  const auto text = message_of<ConfigError>([] { selected({.targets = Names{"q_proj", "norm"}}); });
  CHECK(contains(text, "RmsNorm"));
  CHECK(contains(text, "\"model.norm\""));
  message_of<ConfigError>([] { selected({.targets = Names{"mlp"}}); });
  message_of<ConfigError>([] { selected({.targets = ".*"}); });
}

TEST_CASE("a list item that names nothing while others do is warned about", "[adapters]") {
  const auto log = captured_log([] { CHECK(selected({.targets = Names{"q_proj", "w_proj"}}).size() == 2); });
  CHECK(contains(log, "warning"));
  CHECK(contains(log, "w_proj"));
  CHECK_FALSE(contains(log, "\"q_proj\""));
  CHECK(captured_log([] { selected({.targets = Names{"q_proj"}}); }).empty());
}

TEST_CASE("all-linear means every linear layer but the head", "[adapters]") {
  const testing::FakeLlama model({.hidden = 4, .intermediate = 6, .vocab = 8, .layers = 2});
  TargetRule options{.targets = GENERATE("all-linear", "ALL-Linear")};
  CHECK(selected(model, options).size() == 14);
  CHECK(std::get<Names>(options.targets) == Names{"down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"});
}

TEST_CASE("all-linear lists whole paths where names would say more", "[adapters]") {
  const testing::OddHead model;
  TargetRule options{.targets = "all-linear"};
  CHECK(selected(model, options) == Names{"body"});

  // The name "dense" alone would also name the head.
  struct Twin : torch::nn::Module {
    Twin() {
      register_module("dense", nn::Linear(4, 4));
      register_module("inner", std::make_shared<testing::OddHead>());
      auto box = register_module("box", torch::nn::ModuleList());
      box->register_module("classifier", nn::Linear(4, 4));
    }
  };
  const Twin twin;
  options.targets = "all-linear";
  CHECK(selected(twin, options) == Names{"dense", "inner.body", "box.classifier"});
  CHECK(std::get<Names>(options.targets) == Names{"box.classifier", "dense", "inner.body"});
}

TEST_CASE("all-linear respects exclude and modules to save", "[adapters]") {
  const testing::FakeLlama model({.hidden = 4, .intermediate = 6, .vocab = 8, .layers = 1});
  TargetRule options{.targets = "all-linear", .exclude = Names{"mlp.up_proj"}, .modules_to_save = {"self_attn"}};
  CHECK(selected(model, options) == Names{kLayer0 + "mlp.gate_proj", kLayer0 + "mlp.down_proj"});
  CHECK(std::get<Names>(options.targets) == Names{"down_proj", "gate_proj"});
}

TEST_CASE("modules to save must exist, and end with an item", "[adapters]") {
  const testing::FakeLlama model({.hidden = 4, .intermediate = 6, .vocab = 8, .layers = 1});
  const auto modules = adapters::base_modules(model);
  const auto selected = [&](const Names& items, bool as_stored = false) {
    return adapters::select_modules_to_save(modules, items, as_stored).size();
  };
  CHECK(selected({"lm_head", "norm"}) == 4);  // PEFT knows no boundary: both norms of the layer, too
  CHECK(selected({"head", "model.norm"}) == 2);
  CHECK(contains(message_of<ConfigError>([&] { selected({"heads"}); }), "lm_head"));
  CHECK(contains(captured_log([&] { CHECK(selected({"lm_head", "score"}, /*as_stored=*/true) == 1); }), "score"));
}

TEST_CASE("a pattern that matches no target is warned about", "[adapters]") {
  const testing::FakeLlama model({.hidden = 4, .intermediate = 6, .vocab = 8, .layers = 1});
  TargetRule options{.targets = Names{"q_proj"}};
  const auto targets = adapters::select_targets(model, adapters::base_modules(model), options);
  CHECK(captured_log([&] { adapters::warn_unused_patterns<int64_t>({{"q_proj", 4}}, "rank_pattern", targets); }).empty());
  CHECK(contains(captured_log([&] {
                   adapters::warn_unused_patterns<int64_t>({{"up_proj", 4}}, "rank_pattern", targets);
                 }),
                 "rank_pattern match no adapted module: \"up_proj\""));
}
