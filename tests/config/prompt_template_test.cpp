// data.template: a name, or the texts of one's own.
#include <string>

#include "catch.h"
#include "config/parse.h"

using Catch::Matchers::Contains;
using lora::config::dump_run_config;
using lora::formats::prompt_template;
using lora::formats::PromptTemplate;

TEST_CASE("a template is named, or given by its texts", "[config]") {
  CHECK_FALSE(parse(kMinimal).data.prompt_template);
  CHECK(parse(kMinimal + "  template: vicuna\n").data.prompt_template == prompt_template("vicuna"));
  const auto own = parse(kMinimal + "  template: {system: \"<{content}>\", user: \"{content}?\", prefix: \"\", strip: true}\n")
                       .data.prompt_template;
  CHECK(own == PromptTemplate{.prefix = "", .system = "<{content}>", .user = "{content}?", .strip = true});
  CHECK(parse(kMinimal, {"data.template=llama2"}).data.prompt_template == prompt_template("llama2"));
  CHECK(parse(kMinimal + "  template: vicuna\n", {"data.template=null"}).data.prompt_template == std::nullopt);
  const auto given = parse(kMinimal, {"data.template={user: \"{content}\\n\"}"});
  CHECK(parse(dump_run_config(given)) == given);
}

TEST_CASE("a template that is none is refused by its line", "[config]") {
  const auto error = [](const std::string& value) { return error_of(kMinimal + "  template: " + value); };
  CHECK_THAT(error("vicunna"),
             Contains("[run.yaml:6] data.template must be llama2, vicuna, alpaca, chatglm") && Contains("did you mean vicuna?"));
  CHECK_THAT(error("[vicuna]"), Contains("data.template must be"));
  CHECK_THAT(error("{usr: \"{content}\"}"), Contains("[run.yaml:6] unknown key data.template.usr; did you mean user?"));
  CHECK_THAT(error("{user: hello}"), Contains("[run.yaml:6] template.user must hold {content} once"));
  CHECK_THAT(error("{assistant: \"{content}\"}"), Contains("template.user must hold {content} once"));
  CHECK_THAT(error("{user: \"{contnt}\"}"), Contains("did you mean {content}?"));
  CHECK_THAT(error("{user: 3}"), Contains("data.template.user must be text"));
  CHECK_THAT(error("{user: null}"), Contains("data.template.user must be text"));
  CHECK_THAT(error("{user: \"{content}\", strip: 1}"), Contains("data.template.strip must be true or false"));
  CHECK_THAT(error_of(kMinimal, {"data.template.user=x"}), Contains("must be given whole"));
}

TEST_CASE("a template belongs to conversations", "[config]") {
  for (const std::string format : {"adgen", "completion", "text", "tokens", "records"}) {
    CHECK_THAT(error_of(kMinimal + "  template: vicuna\n", {"data.format=" + format}),
               Contains("[run.yaml:6] data.template is the form of conversations") && Contains("found format " + format));
  }
  for (const std::string format : {"chat", "sharegpt", "alpaca"}) {
    CHECK(error_of(kMinimal + "  template: vicuna\n", {"data.format=" + format}).empty());
  }
}
