#include <fmt/format.h>
#include <torch/utils.h>

#include <algorithm>
#include <functional>

#include "cli/command.h"
#include "cli/merge_report.h"
#include "cli/options.h"
#include "core/check.h"
#include "formats/json.h"
#include "lora/core/file.h"
#include "lora/core/text.h"
#include "lora/io/carry_over.h"
#include "lora/io/dtype.h"
#include "lora/nn/few_bits.h"

namespace lora::cli {
namespace {

using formats::Json;

struct MergeCommand {
  ModelOptions model;
  std::string output, input, shard_size = "5GB";
  bool overwrite = false, json = false;

  int run() const;
};

/// What the report says, table and JSON.
struct Report {
  ReportRows rows;
  std::map<std::string, ModuleNorms> modules = {};
  LogitChange effect = {};  ///< base to merged: what the adapter does
  LogitChange loss = {};    ///< base with adapter to merged: what merging loses

  Json to_json() const;
  void print() const;
};

Json Report::to_json() const {
  Json json = loss.to_json();
  json["adapter_effect"] = effect.to_json();
  json["rows"] = {{"source", rows.source}, {"given", rows.given}, {"used", rows.ids_1S.size()}, {"tokens", rows.num_tokens()}};
  for (const char* key : {"update_norms", "weight_norms", "rounding_norms"}) json[key] = Json::object();
  for (const auto& [path, norms] : modules) {
    json["update_norms"][path] = norms.update;
    json["weight_norms"][path] = norms.weight;
    json["rounding_norms"][path] = norms.rounding;
  }
  return json;
}

void Report::print() const {
  constexpr size_t kShownModules = 12;
  fmt::print("{} rows ({} tokens), {}\n", rows.ids_1S.size(), rows.num_tokens(), rows.source);
  fmt::print("{:<34}{:>14}{:>14}{:>18}\n", "logits", "largest", "mean", "top token kept");
  const auto line = [](const char* name, const LogitChange& change) {
    fmt::print("{:<34}{:>14.3g}{:>14.3g}{:>17.1f}%\n", name, change.largest(), change.mean(), 100 * change.top_token_kept());
  };
  line("base -> merged (the adapter)", effect);
  line("adapter -> merged (what is lost)", loss);
  std::vector<std::pair<std::string, ModuleNorms>> sorted(modules.begin(), modules.end());
  std::ranges::stable_sort(sorted, std::greater(), [](const auto& entry) { return entry.second.update; });
  fmt::print("{:<48}{:>12}{:>12}{:>12}\n", "modules that change most", "|update|", "|weight|", "|rounding|");
  for (size_t i = 0; i < std::min(sorted.size(), kShownModules); ++i) {
    const auto& [path, norms] = sorted[i];
    fmt::print("{:<48}{:>12.4g}{:>12.4g}{:>12.3g}\n", path, norms.update, norms.weight, norms.rounding);
  }
  if (sorted.size() > kShownModules) fmt::print("and {} more, see merge_report.json\n", sorted.size() - kShownModules);
}

/// Merges, and compares the logits of base, base with adapter, and merged.
Report merge_with_report(LoadedModel& loaded, ReportRows rows) {
  Report report{.rows = std::move(rows)};
  report.modules = module_norms(loaded.adapters);
  std::vector<at::Tensor> adapted, base;
  for (const auto& ids : report.rows.ids_1S) adapted.push_back(logits_of(loaded, ids, "the adapter"));
  loaded.adapters.set_enabled(false);
  for (const auto& ids : report.rows.ids_1S) base.push_back(logits_of(loaded, ids, "the base model alone"));
  loaded.adapters.set_enabled(true);
  loaded.adapters.merge();
  for (size_t i = 0; i < report.rows.ids_1S.size(); ++i) {
    const at::Tensor merged = logits_of(loaded, report.rows.ids_1S[i], "the merged model");
    report.effect.add(base[i], merged);
    report.loss.add(adapted[i], merged);
  }
  return report;
}

int MergeCommand::run() const {
  require<ConfigError>(!model.adapters.empty(), "[--adapter] a merge needs an adapter; found none");
  require_free_output(output, overwrite);
  const uint64_t shard_bytes = parse_bytes(shard_size, "--shard-size");
  LoadedModel loaded = load_model(model);
  const torch::NoGradGuard no_grad;

  const auto few_bits = nn::few_bits_of(*loaded.model);
  const Report report = [&] {
    const auto rows = report_rows(loaded, input);
    try {
      return merge_with_report(loaded, rows);
    } catch (const ConfigError& error) {
      throw FormatError(error.what());  // it is the adapter that no weight can hold
    }
  }();
  Json json_report = report.to_json();
  json_report["model"] = model.model;
  json_report["adapter"] = model.adapters.size() == 1 ? Json(model.adapters.front()) : Json(model.adapters);
  json_report["dequantized_from"] = few_bits.scheme ? Json(name_of(few_bits.scheme->type)) : Json();
  json_report["dtype"] = short_name(io::from_torch(loaded.model->stored_dtype()));

  AtomicDirectory directory{Path(output)};
  loaded.architecture->save(*loaded.model, directory.path(),
                            {.dtype = std::nullopt, .copy_tokenizer_from = model.model, .shard_bytes = shard_bytes});
  io::carry_over_config(model.model, directory.path());
  write_file_atomically(directory.path() / "merge_report.json", json_report.dump(2) + "\n");
  directory.commit();
  if (json) {
    fmt::print("{}\n", json_report.dump());
  } else {
    fmt::print("merged {} modules into {} ({})\n", report.modules.size(), output,
               short_name(io::from_torch(loaded.model->stored_dtype())));
    report.print();
    if (few_bits.scheme) {
      fmt::print("the base is in {}: every weight is written as the plain numbers that it stands for\n",
                 name_of(few_bits.scheme->type));
    }
  }
  return kDone;
}

}  // namespace

void add_merge_command(CLI::App& program, Action& action) {
  auto* command = program.add_subcommand("merge", "Folds an adapter (or several) into its base model");
  command->footer("Example: lora merge --model base --adapter out/adapter --output merged");
  auto state = std::make_shared<MergeCommand>();
  state->model.add_to(*command);
  command->add_option("--output", state->output, "Directory of the merged model")->required();
  command->add_option("--input", state->input, "JSON lines to compare logits on, as for score (default: built-in rows)");
  command->add_option("--shard-size", state->shard_size, "Largest weight file, for example 2GB")->capture_default_str();
  command->add_flag("--overwrite", state->overwrite, "Replace an existing output");
  command->add_flag("--json", state->json, "Print the merge report as JSON");
  add_log_options(*command);
  command->callback([state, &action] { action = [state] { return state->run(); }; });
}

}  // namespace lora::cli
