#include "lora/formats/prompt_template.h"

#include <vector>

#include "catch.h"
#include "lora/core/error.h"
#include "support.h"

using namespace lora;
using formats::PromptTemplate;
using formats::TemplatePiece;
using Kind = TemplatePiece::Kind;
using testing::message_of;

namespace {

std::string refusal(const PromptTemplate& form) {
  return message_of<ConfigError>([&] { formats::check_prompt_template(form, "run.yaml:3"); });
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("template: a text is cut at its places; other braces are text", "[template]") {
  const auto pieces = formats::template_pieces("{bos}a {content}{ {} {1} {A} {round}", "t");
  REQUIRE(pieces.size() == 5);
  CHECK(pieces[0].kind == Kind::kBegin);
  CHECK((pieces[1].kind == Kind::kText && pieces[1].text == "a "));
  CHECK(pieces[2].kind == Kind::kContent);
  CHECK(pieces[3].text == "{ {} {1} {A} ");
  CHECK(pieces[4].kind == Kind::kRound);
  CHECK(formats::template_pieces("", "t").empty());
  CHECK(formats::template_pieces("{content", "t").front().text == "{content");
}

TEST_CASE("template: an unknown word in braces names the nearest place", "[template]") {
  const auto message = refusal({.user = "a {contnt} b"});
  CHECK(contains(message, "[run.yaml:3]"));
  CHECK(contains(message, "template.user"));
  CHECK(contains(message, "found {contnt}; did you mean {content}?"));
}

TEST_CASE("template: every text holds its content once and nothing that means nothing there", "[template]") {
  CHECK(contains(refusal({}), "template.user must hold {content} once; found it 0 times"));
  CHECK(contains(refusal({.user = "{content}{content}"}), "found it 2 times"));
  CHECK(contains(refusal({.system = "be", .user = "{content}"}), "template.system must hold {content} once"));
  CHECK(contains(refusal({.user = "{content}", .assistant = "x"}), "template.assistant must hold {content} once"));
  CHECK(contains(refusal({.prefix = "{content}", .user = "{content}"}), "template.prefix must not hold {content}"));
  CHECK(contains(refusal({.user = "{content}{input}"}), "template.user must not hold {input}"));
  CHECK(contains(refusal({.user = "{content}", .input = "{content}"}), "template.input must hold {input} once"));
  CHECK(contains(refusal({.system = "{bos}{content}", .user = "{content}", .system_in_user = true}),
                 "template.system must not hold {bos}"));
  CHECK_NOTHROW(formats::check_prompt_template({.user = "{content}"}, "t"));
}

TEST_CASE("template: built-in ones are well-formed and known by name", "[template]") {
  for (const auto& name : formats::prompt_template_names()) {
    INFO(name);
    CHECK(formats::prompt_template(name).name == name);
    CHECK_NOTHROW(formats::check_prompt_template(formats::prompt_template(name), "t"));
  }
  CHECK(contains(message_of<ConfigError>([] { formats::prompt_template("vicunna"); }), "did you mean vicuna?"));
}

TEST_CASE("template: descriptions differ where templates do", "[template]") {
  const PromptTemplate plain{.user = "{content}"};
  const std::vector<PromptTemplate> others = {{.prefix = "", .user = "{content}"},
                                              {.system = "{content}", .user = "{content}"},
                                              {.user = "{content} "},
                                              {.user = "{content}", .assistant = "{content}"},
                                              {.user = "{content}", .default_system = "x"},
                                              {.user = "{content}", .input = "{input}{content}"},
                                              {.user = "{content}", .default_system_with_input = "x"},
                                              {.user = "{content}", .system_in_user = true},
                                              {.user = "{content}", .strip = true},
                                              {.user = "{content}", .reserved = {"x"}}};
  for (const auto& other : others) CHECK(formats::template_description(other) != formats::template_description(plain));
  PromptTemplate renamed = plain;
  renamed.name = "x";
  CHECK(formats::template_description(renamed) == formats::template_description(plain));
}
