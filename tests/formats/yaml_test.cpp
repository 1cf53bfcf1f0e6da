#include "lora/formats/yaml.h"

#include <string>

#include "lora/core/error.h"
#include "lora/core/random.h"
#include "support.h"

using lora::ConfigError;
using lora::formats::parse_yaml;
using lora::formats::YamlLimits;
using lora::formats::YamlNode;
using lora::testing::message_of;
using Kind = YamlNode::Kind;

namespace {

YamlNode parse(const std::string& text, const YamlLimits& limits = {}) { return parse_yaml(text, "run.yaml", limits); }

void refuse(const std::string& text, const std::string& begins = "[run.yaml:") {
  INFO(text.substr(0, 100));
  const auto message = message_of<ConfigError>([&] { parse(text); });
  INFO(message);
  CHECK(message.starts_with(begins));
}

std::string repeated(const std::string& text, int times) {
  std::string result;
  for (int i = 0; i < times; ++i) result += text;
  return result;
}

/// The tree in one line; quoted scalars in quotes.
std::string shown(const YamlNode& node) {
  if (node.kind == Kind::kNull) return "null";
  if (node.kind == Kind::kScalar) return node.quoted ? "'" + node.scalar + "'" : node.scalar;
  std::string text;
  for (const auto& item : node.items) text += (text.empty() ? "" : ",") + shown(item);
  for (const auto& [key, value] : node.entries) {
    text += (text.empty() ? "" : ",") + key + ":" + shown(value);
  }
  return node.kind == Kind::kSequence ? "[" + text + "]" : "{" + text + "}";
}

}  // namespace

TEST_CASE("YAML keeps places, quotes and order", "[formats]") {
  const auto root = parse(
      "# comment\n"
      "run: {mode: finetune, seed: 010}\n"
      "list:\n"
      "  - yes\n"
      "  - 'yes'\n"
      "  - \"1\"\n"
      "  - !!str 5\n"
      "text: |\n"
      "  two\n"
      "  lines\n"
      "nothing: ~\n"
      "empty:\n"
      "other: null\n"
      "quoted_null: 'null'\n");
  CHECK(shown(root) ==
        "{run:{mode:finetune,seed:010},list:[yes,'yes','1','5'],text:'two\nlines\n',nothing:null,"
        "empty:null,other:null,quoted_null:'null'}");
  CHECK(root.line == 2);
  CHECK(root.find("run")->find("seed")->line == 2);
  CHECK(root.find("list")->items[2].line == 6);
  CHECK(root.find("other")->line == 13);
  CHECK(root.find("missing") == nullptr);
}

TEST_CASE("texts without content are null", "[formats]") {
  for (const char* text : {"", "\n", "# only a comment\n", "---\n", "---\n...\n", "~"}) {
    INFO(text);
    CHECK(parse(text).kind == Kind::kNull);
  }
  CHECK(shown(parse("\xEF\xBB\xBF"
                    "a: 1")) == "{a:1}");
  CHECK(shown(parse("%YAML 1.2\n---\na: 1\n...\n")) == "{a:1}");
  CHECK(shown(parse("a: 1\r\nb: [2]\r\n")) == "{a:1,b:[2]}");
}

TEST_CASE("aliases and merge keys are expanded", "[formats]") {
  CHECK(shown(parse("a: &x [1, {b: 2}]\nc: *x\n")) == "{a:[1,{b:2}],c:[1,{b:2}]}");
  CHECK(shown(parse("a: &x\nb: *x\n")) == "{a:null,b:null}");
  CHECK(shown(parse("&k key: 1\nb: *k\n")) == "{key:1,b:key}");
  CHECK(shown(parse("x: &a 1\ny: &a 2\nz: *a\n")) == "{x:1,y:2,z:2}");
  CHECK(shown(parse("base: &b {p: 1, q: 2}\nrun: {<<: *b, q: 3}\n")) == "{base:{p:1,q:2},run:{q:3,p:1}}");
  CHECK(shown(parse("a: &a {p: 1, q: 2}\nb: &b {q: 3, r: 4}\nc: {<<: [*a, *b], s: 5}\n")) ==
        "{a:{p:1,q:2},b:{q:3,r:4},c:{s:5,p:1,q:2,r:4}}");
  CHECK(shown(parse("a: {'<<': 1}\n")) == "{a:{<<:1}}");
  CHECK(shown(parse("a: &a {p: 1}\nb: &b {<<: *a, q: 2}\nc: {<<: *b}\n")) == "{a:{p:1},b:{q:2,p:1},c:{q:2,p:1}}");
}

TEST_CASE("what has no single meaning is refused with its line", "[formats]") {
  refuse("a: 1\nb: 2\na: 3\n", "[run.yaml:3]");
  refuse("a:\n  b: 1\n  'b': 2\n", "[run.yaml:3]");
  refuse("a: 1\n---\nb: 2\n", "[run.yaml:");
  refuse("a: 1\n...\nb\n");
  refuse("{a: 1} b");
  refuse("? [1]\n: 2\n", "[run.yaml:1]");
  refuse("? {a: 1}\n: 2\n", "[run.yaml:1]");
  refuse("x: 1\n: 2\n");
  refuse("~: 2\n", "[run.yaml:1]");
  refuse("a: &x b\n*x : 1\n", "[run.yaml:2]");
  refuse("a: *missing\n", "[run.yaml:1]");
  refuse("a: &x [*x]\n", "[run.yaml:1]");
  refuse("a: &x {b: {<<: *x}}\n", "[run.yaml:1]");
  refuse("a: !!int 5\n", "[run.yaml:1]");
  refuse("a: !custom {b: 1}\n", "[run.yaml:1]");
  refuse("b: {<<: 1}\n", "[run.yaml:1]");
  refuse("b: {<<: [1]}\n", "[run.yaml:1]");
  refuse("b:\n  <<:\n", "[run.yaml:");
  refuse("c: &c {a: 1}\nb: {<<: *c, <<: *c}\n", "[run.yaml:2]");
}

TEST_CASE("malformed YAML is refused", "[formats]") {
  for (const char* text :
       {"a: [1",      "a: {b: 1", "a: 'x", "a: \"x", "a:\n\t- 1\n", "\ta: 1",     "a: @x",     "a: `x",
        "[[:",        "]",        "}",     "a: ]",   "a: b: c",     "a: \"\\q\"", "- 1\nb: 2", "%YAML 9.9\n---\na: 1",
        "a: [1, 2]]", "a: &x",    "&",     "*",      "!<",          "a: *"}) {
    if (std::string(text) == "a: &x") continue;  // an anchored null
    refuse(text);
  }
}

TEST_CASE("YAML must be UTF-8 without control characters", "[formats]") {
  refuse("a: 1\nb: \xFF\n", "[run.yaml:2]");
  refuse("a: \xC0\xAF\n", "[run.yaml:1]");
  refuse(std::string("a: 1\n\0b: 2\n", 11), "[run.yaml:2]");
  refuse("a: 1\n\x04\nb: 2\n", "[run.yaml:2]");
  refuse("a: \x1b[31m\n", "[run.yaml:1]");
  refuse(std::string("\xFE\xFF\0a", 4), "[run.yaml:1]");
}

TEST_CASE("a bomb of aliases does not go off", "[formats]") {
  std::string bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n";
  for (int i = 1; i < 30; ++i) {
    const std::string before = "*a" + std::to_string(i - 1);
    bomb += "a" + std::to_string(i) + ": &a" + std::to_string(i) + " [" + before + repeated(", " + before, 8) + "]\n";
  }
  refuse(bomb);
  // A long text repeated, where the number of values stays small.
  refuse("a: &a " + std::string(100'000, 'x') + "\nb: [" + repeated("*a, ", 5000) + "]\n");
  // Anchors inside anchors, each holding a copy of the rest.
  refuse(repeated("&a [", 60) + repeated("x, ", 50'000) + repeated("]", 60));
  std::string deep = "a0: &a0 [x]\n";
  for (int i = 1; i < 200; ++i) {
    deep += "a" + std::to_string(i) + ": &a" + std::to_string(i) + " [*a" + std::to_string(i - 1) + "]\n";
  }
  refuse(deep);
}

TEST_CASE("YAML's limits hold exactly", "[formats]") {
  CHECK(shown(parse("[[1]]", {.max_depth = 2})) == "[[1]]");
  message_of<ConfigError>([] { parse("[[1]]", {.max_depth = 1}); });
  CHECK(parse("[1, 2]", {.max_nodes = 3}).items.size() == 2);
  message_of<ConfigError>([] { parse("[1, 2]", {.max_nodes = 2}); });
  message_of<ConfigError>([] { parse("a: 1", {.max_bytes = 3}); });
  CHECK(parse("a: 1", {.max_bytes = 4}).entries.size() == 1);
}

TEST_CASE("nesting and length that overwhelm a parser end quickly", "[formats]") {
  const int many = 100'000;
  for (const char* unit : {"[", "{", "[[:", "- ", "? ", "a: [", "{a: ", "&a [", "[a, ", "{[", "!a "}) {
    INFO(unit);
    refuse(repeated(unit, many));
  }
  refuse(repeated("[", 500'000) + repeated("]", 500'000));
  std::string stairs;
  for (int i = 0; i < 1000; ++i) stairs += std::string(static_cast<size_t>(i), ' ') + "a:\n";
  refuse(stairs);
  std::string wide;
  for (int i = 0; i < 90'000; ++i) wide += "k" + std::to_string(i) + ":\n";
  CHECK(parse(wide).entries.size() == 90'000);
}

TEST_CASE("damaged YAML is refused or read, never worse", "[formats]") {
  const std::string good =
      "run: &r {mode: finetune, seed: 1}\nlist:\n  - 'a'\n  - \"b\\n\"\n  - *r\ntext: |\n  x\n"
      "m:\n  <<: *r\n  ? k\n  : [1, {a: b}]\n# end\n";
  const std::string alphabet = " \n\t:-?[]{},&*!|>'\"%@`#~<ar0.\\";
  lora::SplitMix64 random(1);
  int refused = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string text = good;
    for (uint64_t edits = 1 + random.below(4); edits > 0; --edits) {
      const size_t place = random.below(text.size());
      const char c = alphabet[random.below(alphabet.size())];
      if (random.below(3) == 0) {
        text.erase(place, 1 + random.below(5));
      } else if (random.below(2) == 0) {
        text.insert(place, 1, c);
      } else {
        text[place] = c;
      }
    }
    try {
      parse(text);
    } catch (const ConfigError&) {
      ++refused;
    }
  }
  CHECK(refused > 500);
  CHECK(refused < 3000);
}
