#include <string>

#include "catch.h"
#include "config/parse.h"

using Catch::Matchers::Contains;
using Catch::Matchers::Equals;

TEST_CASE("an unknown key names the nearest one", "[config]") {
  const auto [line, key, suggestion] = GENERATE(table<std::string, std::string, std::string>({
      {"train: {micro_bath: 4}", "train.micro_bath", "train.micro_batch"},
      {"train: {amp: {dtyp: bf16}}", "train.amp.dtyp", "train.amp.dtype"},
      {"trian: {epochs: 1}", "trian", "train"},
      {"adapter: {lora_alhpa: 16}", "adapter.lora_alhpa", "adapter.lora_alpha"},
      {"train: {optimiser: {lr: 1.0e-3}}", "train.optimiser", "train.optimizer"},
      {"train: {lr: 1.0e-3}", "train.lr", "train.optimizer.lr"},
      {"epochs: 3", "epochs", "train.epochs"},
      {"train: {seed: 3}", "train.seed", "run.seed"},
      {"parallel: {tensors: 2}", "parallel.tensors", "parallel.tensor"},
      {"log: {tensor_board: true}", "log.tensor_board", "log.tensorboard"},
      {"train: {batch_size: 4}", "train.batch_size", "train.micro_batch"},
      {"learning_rate: 1.0e-4", "learning_rate", "train.optimizer.lr"},
      {"runner_config: {epochs: 1}", "runner_config", "train"},
  }));
  CHECK_THAT(error_of(kMinimal + line), Equals("[run.yaml:6] unknown key " + key + "; did you mean " + suggestion + "?"));
}

TEST_CASE("the line of an unknown key is its own, whatever follows it", "[config]") {
  CHECK_THAT(error_of(kMinimal + "trian:\n\n  epochs: 1\n"), Contains("[run.yaml:6] unknown key trian"));
  CHECK_THAT(error_of(kMinimal + "train:\n  no_decay:\n    - norm\n"), Contains("[run.yaml:7] unknown key train.no_decay"));
}

TEST_CASE("an unknown field of the model names the nearest field", "[config]") {
  CHECK_THAT(error_of("model: {arch: llama, hiden_size: 64}"),
             Equals("[run.yaml:1] unknown key model.hiden_size; did you mean model.hidden_size?"));
}

TEST_CASE("keys of adapters beside the first are the first one's, whatever their names", "[config]") {
  const auto error = [](const std::string& keys) { return error_of(kMinimal + "adapter: {also: {side: {" + keys + "}}}"); };
  CHECK(error("method: prefix, pre_seq_len: 4").empty());
  CHECK_THAT(error("lora_alhpa: 16"),
             Contains("unknown key adapter.also.NAME.lora_alhpa; did you mean adapter.also.NAME.lora_alpha?"));
  CHECK_THAT(error("lr: 1.0"), Contains("did you mean train.optimizer.lr?"));
  CHECK_THAT(error("quantization: {bits: 4}"), Contains("unknown key adapter.also.NAME.quantization"));
  CHECK_THAT(error("also: {more: {r: 2}}"), Contains("unknown key adapter.also.NAME.also"));
  CHECK_THAT(error_of(kMinimal + "train: {r: 4}"), Equals("[run.yaml:6] unknown key train.r; did you mean adapter.r?"));
}

TEST_CASE("a key with several homes names them all", "[config]") {
  CHECK_THAT(error_of(kMinimal + "train: {dtype: bf16}"), Contains("did you mean model.dtype or train.amp.dtype?"));
}

TEST_CASE("keys are nested, not dotted", "[config]") {
  CHECK_THAT(error_of(kMinimal + "train.epochs: 3"), Contains("[run.yaml:6]") && Contains("no dot") && Contains("train.epochs"));
}

TEST_CASE("hostile key names stay on one line", "[config]") {
  const std::string error = error_of(kMinimal + "\"a\\nb" + std::string(900, 'x') + "\": 1");
  CHECK_THAT(error, Contains("unknown key a\\nb"));
  CHECK(error.find('\n') == std::string::npos);
  CHECK(error.size() < 300);
}

TEST_CASE("a duplicate key is refused", "[config]") {
  CHECK_THAT(error_of(kMinimal + "run: {output_dir: other}"), Contains("run.yaml:6") && Contains("run"));
}
