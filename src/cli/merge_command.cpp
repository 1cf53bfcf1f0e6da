#include <ATen/ATen.h>
#include <fmt/format.h>
#include <torch/utils.h>

#include "cli/command.h"
#include "cli/options.h"
#include "core/check.h"
#include "formats/json.h"
#include "lora/core/file.h"
#include "lora/core/log.h"
#include "lora/core/random.h"
#include "lora/core/text.h"
#include "lora/nn/few_bits.h"

namespace lora::cli {
namespace {

using formats::Json;

struct MergeCommand {
  ModelOptions model;
  std::string output, shard_size = "5GB";
  bool overwrite = false, json = false;

  int run() const;
};

/// Token rows that every model can be asked about: ids spread over its vocabulary, the same on every machine.
Batch built_in_rows(const llama::LlamaForCausalLMImpl& model, const at::Device& device) {
  constexpr int64_t kRows = 4, kLength = 32;
  const int64_t length = std::min(kLength, model.max_positions());
  at::Tensor ids = at::empty({kRows, length}, at::kLong);
  SplitMix64 random(0);
  for (int64_t i = 0; i < ids.numel(); ++i) {
    ids.data_ptr<int64_t>()[i] = static_cast<int64_t>(random.below(static_cast<uint64_t>(model.vocab_size())));
  }
  Batch batch;
  batch.input_ids_BS = ids.to(device);
  return batch;
}

Json update_norms(const AdapterSet& adapters) {
  Json norms = Json::object();
  for (const auto& slot : adapters.slots()) norms[slot.path] = slot.adapter->weight_delta().norm().item<double>();
  return norms;
}

int MergeCommand::run() const {
  require<ConfigError>(!model.adapter.empty(), "[--adapter] a merge needs an adapter; found none");
  require_free_output(output, overwrite);
  const uint64_t shard_bytes = parse_bytes(shard_size, "--shard-size");
  LoadedModel loaded = load_model(model);
  const torch::NoGradGuard no_grad;

  const Batch rows = built_in_rows(*loaded.model, loaded.device);
  Json report = {{"model", model.model}, {"adapter", model.adapter}, {"update_norms", update_norms(loaded.adapters)}};
  const auto few_bits = nn::few_bits_of(*loaded.model);
  report["dequantized_from"] = few_bits.scheme ? Json(name_of(few_bits.scheme->type)) : Json();
  const at::Tensor adapted = loaded.model->forward(rows);
  loaded.adapters.merge();
  const at::Tensor change = (loaded.model->forward(rows) - adapted).abs();
  report["max_logit_change"] = change.max().item<double>();
  report["mean_logit_change"] = change.mean().item<double>();
  report["dtype"] = short_name(loaded.model->config.dtype);

  AtomicDirectory directory{Path(output)};
  llama::save(*loaded.model, directory.path(),
              {.dtype = std::nullopt, .copy_tokenizer_from = model.model, .shard_bytes = shard_bytes});
  write_file_atomically(directory.path() / "merge_report.json", report.dump(2) + "\n");
  directory.commit();
  if (json) {
    fmt::print("{}\n", report.dump());
  } else {
    fmt::print("merged {} modules into {} ({})\nlargest logit change against base + adapter: {:.3g}, mean {:.3g}\n",
               loaded.adapters.slots().size(), output, short_name(loaded.model->config.dtype),
               change.max().item<double>(), change.mean().item<double>());
    if (few_bits.scheme) {
      fmt::print("the base is in {}: every weight is written as the plain numbers that it stands for\n", name_of(few_bits.scheme->type));
    }
  }
  return kDone;
}

}  // namespace

void add_merge_command(CLI::App& program, Action& action) {
  auto* command = program.add_subcommand("merge", "Folds an adapter into its base model");
  command->footer("Example: lora merge --model base --adapter out/adapter --output merged");
  auto state = std::make_shared<MergeCommand>();
  state->model.add_to(*command);
  command->add_option("--output", state->output, "Directory of the merged model")->required();
  command->add_option("--shard-size", state->shard_size, "Largest weight file, for example 2GB")->capture_default_str();
  command->add_flag("--overwrite", state->overwrite, "Replace an existing output");
  command->add_flag("--json", state->json, "Print the merge report as JSON");
  add_log_options(*command);
  command->callback([state, &action] { action = [state] { return state->run(); }; });
}

}  // namespace lora::cli
