#include "lora/core/pattern.h"

#include <string>
#include <vector>

#include "lora/core/error.h"
#include "support.h"

using lora::ConfigError;
using lora::NamePattern;
using lora::PatternMap;
using lora::TargetMatcher;
using lora::TargetRule;
using lora::testing::message_of;
using Names = std::vector<std::string>;

namespace {

constexpr const char* kQuery = "model.layers.1.self_attn.q_proj";

bool is_target(TargetRule rule, std::string_view path) { return TargetMatcher(std::move(rule)).matches(path); }

}  // namespace

TEST_CASE("patterns match whole names or parts as Python's re does", "[core]") {
  const NamePattern pattern("(q|v)_proj", "test");
  CHECK(pattern.matches_all("q_proj"));
  CHECK_FALSE(pattern.matches_all("a.q_proj"));
  CHECK_FALSE(pattern.matches_all("q_proj.b"));
  CHECK(pattern.matches_part("a.q_proj.b"));
  CHECK_FALSE(pattern.matches_part("a.k_proj"));
  CHECK(pattern.expression() == "(q|v)_proj");

  CHECK(NamePattern("bias$", "test").matches_part("layer.bias"));
  CHECK_FALSE(NamePattern("bias$", "test").matches_part("layer.bias.a"));
  CHECK(NamePattern("^model", "test").matches_part("model.x"));
  CHECK_FALSE(NamePattern("^model", "test").matches_part("a.model"));
  CHECK(NamePattern("a|bc", "test").matches_all("bc"));
  CHECK_FALSE(NamePattern("a|ab", "test").matches_all("abc"));
  CHECK(NamePattern(R"(layers\.(?:[0-9]|1[0-5])\..*(?!k)[qv]_proj)", "test").matches_all("layers.12.attn.v_proj"));
  CHECK(NamePattern(R"(.*\.\d{1,2}\.[^.]*?)", "test").matches_all("h.12.attn"));
  CHECK_FALSE(NamePattern(R"(.*\.\d{1,2}\.[^.]*?)", "test").matches_all("h.123.attn"));
}

TEST_CASE("what Python alone knows is refused", "[core]") {
  for (const char* expression : {"(?<=a)b",   "(?<!a)b",  "(?P<n>a)", "(?P=n)", "(?i)a",       "(?s:a)",   "(?>a)", R"(\Aa)",
                                 R"(a\Z)",    R"((a)\1)", "a*+",      "a++",    "a?+",         "a{1,2}+",  "a**",   R"(\x41)",
                                 R"(\u0041)", R"(\p)",    "[]a]",     "[^]a]",  "[[:alpha:]]", R"([\x41])"}) {
    INFO(expression);
    const auto text = message_of<ConfigError>([&] { NamePattern(expression, "freeze.train"); });
    CHECK(text.starts_with("[freeze.train]"));
  }
  for (const char* expression : {"(", "a)", "a)|(b", "[a", "*a", "a\\", "a{2,1}", "a{", "(?", "[b-a]"}) {
    INFO(expression);
    message_of<ConfigError>([&] { NamePattern(expression, "freeze.train"); });
    message_of<ConfigError>([&] { NamePattern::of_last_components(expression, "rank_pattern"); });
  }
  message_of<ConfigError>([&] { NamePattern(std::string("a\0b", 3), "test"); });
  // Allowed: the same characters where they are harmless.
  CHECK(NamePattern(R"(a\+\+)", "test").matches_all("a++"));
  CHECK(NamePattern("[*+]+", "test").matches_all("+*"));
  CHECK(NamePattern("a+?", "test").matches_all("aa"));
  CHECK(NamePattern(R"(\.\\\[\]\-)", "test").matches_all(R"(.\[]-)"));
  CHECK(NamePattern("[(?<]", "test").matches_all("<"));
}

TEST_CASE("hostile patterns and names cost little", "[core]") {
  const std::string many(1000, 'a');
  CHECK_FALSE(NamePattern("(a+)+b", "test").matches_all(many));
  CHECK_FALSE(NamePattern("(a|a)*(a|aa)+b", "test").matches_all(many));
  CHECK_FALSE(NamePattern("(.*.*.*)*x", "test").matches_all(many));
  CHECK(NamePattern("(.*)*", "test").matches_all(many));
  std::string optional;
  for (int i = 0; i < 500; ++i) optional += "a?";
  CHECK_FALSE(NamePattern(optional, "test").matches_all(many));
  message_of<ConfigError>([&] { NamePattern(many + "a", "test"); });
  message_of<ConfigError>([&] { NamePattern("a*", "test").matches_all(many + "a"); });
  message_of<ConfigError>([&] { NamePattern("((a{50}){50}){50}", "test"); });
  message_of<ConfigError>([&] { NamePattern("a{1,99999999999999999999999}", "test"); });
  message_of<ConfigError>([&] { NamePattern("a{18446744073709551615}{2}", "test"); });
  const std::string nested = std::string(500, '(') + std::string(500, ')');
  CHECK(NamePattern(nested, "test").matches_all(""));
  message_of<ConfigError>([&] { NamePattern(std::string(1000, '('), "test"); });
}

TEST_CASE("list items match on a dot boundary", "[core]") {
  CHECK(lora::matches_suffix("a.b", "b"));
  CHECK(lora::matches_suffix("b", "b"));
  CHECK(lora::matches_suffix("a.b.c", "b.c"));
  CHECK_FALSE(lora::matches_suffix("ab", "b"));
  CHECK_FALSE(lora::matches_suffix("b.a", "b"));
  CHECK_FALSE(lora::matches_suffix("b", "a.b"));
}

TEST_CASE("targets given as a list are names or suffixes, not expressions", "[core]") {
  CHECK(is_target({.targets = Names{"q_proj", "v_proj"}}, kQuery));
  CHECK(is_target({.targets = Names{"self_attn.q_proj"}}, kQuery));
  CHECK(is_target({.targets = Names{kQuery}}, kQuery));
  CHECK_FALSE(is_target({.targets = Names{"_proj"}}, kQuery));
  CHECK_FALSE(is_target({.targets = Names{".*q_proj"}}, kQuery));
  CHECK_FALSE(is_target({.targets = Names{}}, kQuery));
}

TEST_CASE("targets given as a string are an expression over the whole path", "[core]") {
  CHECK_FALSE(is_target({.targets = "q_proj"}, kQuery));
  CHECK(is_target({.targets = R"(.*\.(q|v)_proj)"}, kQuery));
  CHECK_FALSE(is_target({.targets = R"(.*\.(k|v)_proj)"}, kQuery));
  CHECK_FALSE(is_target({.targets = R"(.*\.(q|v)_proj)"}, "model.layers.1.self_attn.q_proj.x"));
  for (const char* all : {"all-linear", "ALL-Linear"}) {
    CHECK(TargetRule{.targets = all}.is_all_linear());
    CHECK(is_target({.targets = all}, kQuery));
    CHECK_FALSE(is_target({.targets = all, .exclude = Names{"q_proj"}}, kQuery));
  }
  CHECK_FALSE(TargetRule{.targets = Names{"all-linear"}}.is_all_linear());
}

TEST_CASE("excluded modules are never adapted", "[core]") {
  const TargetRule by_list{.targets = Names{"q_proj"}, .exclude = Names{"layers.1.self_attn.q_proj"}};
  CHECK_FALSE(is_target(by_list, kQuery));
  CHECK(is_target(by_list, "model.layers.0.self_attn.q_proj"));
  CHECK(is_target(by_list, "model.layers.11.self_attn.q_proj"));
  const TargetRule by_expression{.targets = Names{"q_proj"}, .exclude = R"(.*layers\.1\..*)"};
  CHECK_FALSE(is_target(by_expression, kQuery));
  CHECK(is_target(by_expression, "model.layers.11.self_attn.q_proj"));
  CHECK(is_target({.targets = Names{"q_proj"}, .exclude = "q_proj"}, kQuery));
  CHECK(is_target({.targets = Names{"q_proj"}, .exclude = ""}, kQuery));
}

TEST_CASE("modules that are saved whole are never adapted", "[core]") {
  const TargetRule rule{.targets = Names{"q_proj", "lm_head", "dense"}, .modules_to_save = {"lm_head", "score"}};
  CHECK_FALSE(is_target(rule, "lm_head"));
  CHECK_FALSE(is_target(rule, "model.lm_head"));
  CHECK_FALSE(is_target(rule, "score.dense"));
  CHECK_FALSE(is_target(rule, "model.score.dense"));
  CHECK(is_target(rule, "my_lm_head.dense"));
  CHECK(is_target(rule, kQuery));
}

TEST_CASE("layers_to_transform keeps the listed layers of suffix matches", "[core]") {
  const TargetRule rule{.targets = Names{"q_proj"}, .layers_to_transform = {{1, 3}}};
  CHECK(is_target(rule, kQuery));
  CHECK_FALSE(is_target(rule, "model.layers.0.self_attn.q_proj"));
  CHECK_FALSE(is_target(rule, "model.layers.13.self_attn.q_proj"));
  CHECK_FALSE(is_target(rule, "model.q_proj"));
  // Python's .*?\.[^.]*\.(\d+)\. needs two components before the number and one after it.
  CHECK_FALSE(is_target(rule, "layers.1.q_proj"));
  CHECK_FALSE(is_target(rule, "1.q_proj"));
  CHECK(is_target(rule, "a.b.1.c.0.q_proj"));
  CHECK_FALSE(is_target(rule, "a.b.0.c.1.q_proj"));
  CHECK(is_target(rule, "a.b.x1.c.3.q_proj"));
  CHECK_FALSE(is_target(rule, "a.b.18446744073709551617.q_proj"));
  // An exact name skips the filter.
  CHECK(is_target({.targets = Names{"model.layers.0.q_proj"}, .layers_to_transform = {{1}}}, "model.layers.0.q_proj"));
}

TEST_CASE("layers_pattern says what the layer number follows", "[core]") {
  const auto rule = [](Names containers) {
    return TargetRule{.targets = Names{"q_proj"}, .layers_to_transform = {{1}}, .layers_pattern = std::move(containers)};
  };
  CHECK(is_target(rule({"layers"}), kQuery));
  CHECK(is_target(rule({"layers"}), "layers.1.q_proj"));
  CHECK_FALSE(is_target(rule({"h"}), kQuery));
  CHECK(is_target(rule({"h", "layers"}), kQuery));
  CHECK_FALSE(is_target(rule({"ayers"}), kQuery));
  CHECK(is_target(rule({"lay.*"}), kQuery));
  CHECK(is_target(rule({"decoder"}), "experts.0.decoder.1.q_proj"));
  CHECK_FALSE(is_target(rule({"decoder"}), "experts.1.decoder.0.q_proj"));
  // The first container that is found decides.
  CHECK_FALSE(is_target(rule({"experts", "decoder"}), "experts.0.decoder.1.q_proj"));
}

TEST_CASE("rules that contradict themselves are refused", "[core]") {
  message_of<ConfigError>([] { TargetMatcher({.targets = ".*q_proj", .layers_to_transform = {{1}}}); });
  message_of<ConfigError>([] { TargetMatcher({.targets = Names{"q_proj"}, .layers_pattern = {"layers"}}); });
  for (const TargetRule& rule : {TargetRule{.targets = "("}, TargetRule{.exclude = "("}, TargetRule{.modules_to_save = {"("}},
                                 TargetRule{.layers_to_transform = {{1}}, .layers_pattern = {"("}}}) {
    message_of<ConfigError>([&] { TargetMatcher matcher(rule); });
  }
}

TEST_CASE("keys without a regular expression mean what they mean as one", "[core]") {
  for (const std::string key : {"q_proj", "self_attn.q_proj", "model.layers.1.q_proj", "a.b", ".", "..", "proj", "1"}) {
    // A group changes nothing but how it is found.
    const PatternMap<double> plain({{key, 0.5}}, "alpha_pattern"), expression({{"(?:" + key + ")", 0.5}}, "alpha_pattern");
    for (const std::string path :
         {"q_proj", "xq_proj", "model.layers.1.q_proj", "model.layers.11.q_proj", "model.layers.1.self_attn.q_proj",
          "model.layers.1.self_attnxq_proj", "axb", "x.axb", "xaxb", "a.b.c", "", ".", "a", "a.", ".1", "a\nb"}) {
      INFO(key << ", " << path);
      CHECK(plain.find(path) == expression.find(path));
    }
  }
}

TEST_CASE("the first matching key of a pattern map wins", "[core]") {
  const PatternMap<int64_t> ranks({{"q_proj", 5}, {R"(layers\.1\.mlp\.up_proj)", 3}, {"up_proj|o_proj", 7}}, "rank_pattern");
  CHECK(ranks.find(kQuery) == 5);
  CHECK(ranks.find("q_proj") == 5);
  CHECK(ranks.find("model.layers.1.mlp.up_proj") == 3);
  CHECK(ranks.find("model.layers.11.mlp.up_proj") == 7);
  CHECK(ranks.find("model.layers.1.self_attn.o_proj") == 7);
  CHECK_FALSE(ranks.find("model.layers.1.self_attn.xq_proj"));
  CHECK_FALSE(ranks.find("model.q_proj.base_layer"));
  CHECK_FALSE(PatternMap<int64_t>({}, "rank_pattern").find(kQuery));
  const auto text = message_of<ConfigError>([] { PatternMap<int64_t>({{"(", 1}}, "rank_pattern"); });
  CHECK(text.starts_with("[rank_pattern]"));
}
