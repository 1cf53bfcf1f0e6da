#include "config/overrides.h"

#include <string>

#include "catch.h"
#include "config/parse.h"

using Catch::Matchers::Contains;
using Catch::Matchers::Equals;
using lora::Path;
using lora::config::Names;

TEST_CASE("overrides win over the file, the last one over the others", "[config]") {
  const auto config = parse(kMinimal + "train: {max_steps: 3, epochs: 2}", {"train.max_steps=10", "train.max_steps=11"});
  CHECK(config.train.max_steps == 11);
  CHECK(config.train.epochs == 2);
}

TEST_CASE("the value of an override is YAML", "[config]") {
  const auto config =
      parse(kMinimal + "adapter: {r: 4}",
            {"adapter.target_modules=[q_proj, 'k proj']", "adapter.rank_pattern={q_proj: 2}", "train.optimizer.lr=3e-4",
             "adapter.use_rslora=true", "adapter.r=null", "data.prompt_column=a=b", "run.mode="});
  CHECK(config.adapter.target_modules == Names(std::vector<std::string>{"q_proj", "k proj"}));
  CHECK(config.adapter.rank_pattern == lora::config::Patterns{{"q_proj", 2}});
  CHECK(config.train.optimizer.lr == 3e-4);
  CHECK(config.adapter.use_rslora == true);
  CHECK(!config.adapter.r);
  CHECK(config.data.prompt_column == "a=b");
}

TEST_CASE("a whole section can be given", "[config]") {
  const auto config = parse(kMinimal + "train: {epochs: 3}", {"train={max_steps: 5, optimizer: {lr: 1e-3}}"});
  CHECK(config.train.epochs == 3);
  CHECK(config.train.max_steps == 5);
  CHECK(config.train.optimizer.lr == 1e-3);
}

TEST_CASE("paths of overrides count from their own base", "[config]") {
  const auto config = parse(kMinimal, {"run.output_dir=../elsewhere", "run.resume=out/checkpoints/step-3"});
  CHECK(config.run.output_dir == Path("/elsewhere"));
  CHECK(config.run.resume == "/cwd/out/checkpoints/step-3");
  CHECK(config.model.path == Path("/runs/a/base"));
}

TEST_CASE("bad overrides say what is wrong with them", "[config]") {
  const auto [text, message] = GENERATE(table<std::string, std::string>({
      {"train.micro_bath=3", "[--set] unknown key train.micro_bath; did you mean train.micro_batch?"},
      {"trian.epochs=3", "[--set] unknown key trian; did you mean train?"},
      {"train.epochs=0", "[--set] train.epochs must be at least 1; found 0"},
      {"train.epochs.x=1", "[--set] train.epochs must be given whole; found train.epochs.x; write train.epochs=VALUE"},
      {"adapter.rank_pattern.q_proj=4", "[--set] adapter.rank_pattern must be given whole"},
      {"train=3", "[--set] train must be a map of keys; found 3"},
      {"train.epochs", "[--set] must be KEY=VALUE, for example train.max_steps=10; found train.epochs"},
      {"=3", "[--set] must be KEY=VALUE"},
      {"train..epochs=3", "[--set] must be KEY=VALUE"},
      {".epochs=3", "[--set] must be KEY=VALUE"},
      {"train.=3", "[--set] must be KEY=VALUE"},
      {"a.b.c.d.e.f.g.h.i.j=3", "[--set] must be KEY=VALUE"},
      {"adapter.target_modules=[a, b", "--set adapter.target_modules"},
      {"log.tensorboard=true", "[--set] log.tensorboard must be false in this version; found true"},
      {"model.hidden_size=64", "[--set] model.hidden_size needs fresh weights; found model.path as well"},
  }));
  CAPTURE(text);
  const std::string error = error_of(kMinimal, {text});
  CHECK_THAT(error, Contains(message));
  CHECK(error.find('\n') == std::string::npos);
}

TEST_CASE("fields of fresh weights can be overridden", "[config]") {
  const std::string fresh =
      "run: {output_dir: out}\nmodel: {arch: llama, vocab_size: 64, tie_word_embeddings: true}\n"
      "data: {format: tokens, train: {path: t.jsonl}}\n";
  const auto fields =
      parse(fresh, {"model.hidden_size=32", "model.vocab_size=128", "model.tie_word_embeddings=null"}).model.fields;
  CHECK(fields == lora::config::ModelFields{{"hidden_size", "32"}, {"vocab_size", "128"}});
}
