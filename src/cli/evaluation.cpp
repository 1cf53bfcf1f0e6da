#include "cli/evaluation.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <set>

#include "cli/adapter_setup.h"
#include "cli/run_setup.h"
#include "cli/signals.h"
#include "core/check.h"
#include "data/strip.h"
#include "formats/json.h"
#include "lora/core/file.h"
#include "lora/core/log.h"
#include "lora/core/stopwatch.h"
#include "lora/data/format_registry.h"
#include "lora/data/glm_adgen.h"
#include "lora/data/question.h"
#include "lora/formats/records.h"
#include "lora/ops/device.h"

namespace lora::cli {
namespace {

using config::RunConfig;
using formats::OrderedJson;

bool has_answers(const std::string& format) {
  const auto names = data::answering_format_names();
  return std::ranges::find(names, format) != names.end();
}

/// The file of the run that wrote into output_dir; nothing: none did, or one of another version or with stages.
std::optional<RunConfig> run_in(const Path& output) try {
  const Path file = output / "config.yaml";
  if (!std::filesystem::exists(file)) return std::nullopt;
  return config::parse_run_config(read_file(file), file.string(), output, {}, output, "");
} catch (const Error& error) {
  log::warn(fmt::format(
      "[run.output_dir] what a run left there is known by its config.yaml, which cannot be read as one run's; {}", error.what()));
  return std::nullopt;
}

/// Whether a directory may be the one that a run began with: what is gone was moved with the run.
bool may_be_same(const std::optional<Path>& began, const std::optional<Path>& now) {
  if (began == now) return true;
  if (!began || !now) return false;
  std::error_code error;
  return !std::filesystem::exists(*began, error) || std::filesystem::equivalent(*began, *now, error);
}

/// Whether a run of `began` is one of `config`: with the same model and the same adapter to start from.
bool is_run_of(const RunConfig& began, const RunConfig& config) {
  return may_be_same(began.model.path, config.model.path) && began.model.arch == config.model.arch &&
         began.model.fields == config.model.fields && may_be_same(began.adapter.init_from, config.adapter.init_from);
}

/// What is said in conversations has no white space at its ends, though templates may put some there.
bool is_conversation(std::string_view format) { return format == "alpaca" || format == "chat" || format == "sharegpt"; }

/// The header of a record set knows all of its files.
Path file_of_rows(const Path& path) { return std::filesystem::is_directory(path) ? path / formats::kRecordHeaderFile : path; }

/// Rows per second and the time left, now and then.
class RowProgress {
 public:
  explicit RowProgress(int64_t rows) : rows_(rows) {}

  void count() {
    ++done_;
    if (since_line_.seconds() < kSecondsBetweenLines && done_ < rows_) return;
    since_line_.restart();
    const double speed = static_cast<double>(done_) / since_start_.seconds();
    log::info(fmt::format("{} of {} rows, {:.1f} rows/s, {:.0f} s left", done_, rows_, speed,
                          static_cast<double>(rows_ - done_) / speed));
  }

 private:
  static constexpr double kSecondsBetweenLines = 5;
  int64_t rows_, done_ = 0;
  Stopwatch since_start_, since_line_;
};

}  // namespace

void require_answerable(const std::string& format, const std::string& shown) {
  require<ConfigError>(has_answers(format) || format == "tokens",
                       "[data.format] lora predict answers rows of {}, tokens, or records of them; found {}",
                       fmt::join(data::answering_format_names(), ", "), shown);
}

Evaluation::Evaluation(RunConfig config, const std::string& adapter)
    : config_(std::move(config)), device_(parse_device(config_.run.device)) {
  if (config_.run.threads > 0) at::set_num_threads(static_cast<int>(config_.run.threads));
  tokenizer_ = make_tokenizer(config_);
  choose(adapter);
  const RunConfig with_base = this->with_base();
  base_ = with_base.model.path.value_or("");
  model_ = make_model(with_base, device_);
  if (data::needs_tokenizer(config_.data.format)) require_same_tokens(*model_, *tokenizer_);
  adapters_ = load_adapters(*model_, chosen_adapters_);
  for (const auto& one : chosen_adapters_) log::info(fmt::format("adapter {}", one.directory.string()));
  if (!adapters_) log::info("no adapter: the model alone");
  model_->eval();
  if (tokenizer_ != nullptr) pad_id_ = std::max<int64_t>(tokenizer_->pad_id(), 0);
  data::DatasetOptions options = dataset_options(config_, *model_);
  options.keep_text_pairs = std::numeric_limits<int64_t>::max();
  options.answers_optional = config_.run.mode == "predict";
  rows_ = data::load_dataset(*config_.data.eval.path, options, tokenizer_.get());
  log::info(fmt::format("{}: {} rows, {} truncated, {} bad", config_.data.eval.path->filename().string(), rows_.num_rows,
                        rows_.num_truncated, rows_.num_bad_rows));
  for (const auto& reason : rows_.bad_row_reasons) log::warn("left out: " + reason);
}

/// --adapter, or what a run of this file left in its output directory, or adapter.init_from.
void Evaluation::choose(const std::string& given) {
  if (!given.empty()) {
    chosen_adapters_ = {{"default", given}};
    return;
  }
  const Path& output = config_.run.output_dir;
  const auto began = run_in(output);
  const bool is_own = began && is_run_of(*began, config_);
  const RunConfig& trained = is_own ? *began : config_;
  const bool may_be_own = is_own || (!began && !config_.adapter.init_from);
  own_result_.adapter = may_be_own && trained.adapter.method != "none" && std::filesystem::exists(output / "adapter");
  if (own_result_.adapter) {
    chosen_adapters_ = adapters_of_run(trained, output / "adapter");
  } else if (config_.adapter.init_from) {
    chosen_adapters_ = {{"default", *config_.adapter.init_from}};
  }
  if (began && !is_own && chosen_adapters_.empty() && std::filesystem::exists(output / "adapter")) {
    log::warn(fmt::format(
        "[run.output_dir] the adapter in {} is of a run with another model or init_from, and is not used; name it with "
        "--adapter to evaluate it",
        (output / "adapter").string()));
  }
  const bool trained_model = own_result_.adapter ? !trained.freeze.train.empty() : trained.adapter.method == "none";
  own_result_.model = is_own && trained_model && std::filesystem::exists(output / "model");
}

RunConfig Evaluation::with_base() const {
  if (own_result_.model) {
    log::info(fmt::format("the model is what the run left in {}", (config_.run.output_dir / "model").string()));
    return with_base_of_result(config_, own_result_);
  }
  return chosen_adapters_.empty() ? config_ : with_base_of(chosen_adapters_.front().directory, config_);
}

train::EvalResult Evaluation::loss() {
  const auto amp = trainer_options(config_, device_, 0).amp_dtype;
  return train::evaluate(*model_, rows_, config_.train.micro_batch, device_, amp, pad_id_);
}

bool Evaluation::has_texts() const { return has_answers(rows_.format) && tokenizer_ != nullptr; }

void Evaluation::require_questions() const {
  if (config_.data.format == "records") require_answerable(rows_.format, "records of " + rows_.format);
  for (int64_t row = 0; row < rows_.size(); ++row) {
    require<DataError>(data::last_answer(rows_.example(row)) > 0,
                       "[{}] a row must have tokens before its last answer to be predicted from; row {} has none; mask them with "
                       "labels of {}",
                       config_.data.eval.path->string(), rows_.number(row), kIgnoreLabel);
  }
}

/// As it was written, where that is known.
data::TextPair Evaluation::text(int64_t row) const {
  const auto i = static_cast<size_t>(row);
  return i < rows_.text_pairs.size() ? rows_.text_pairs[i] : data::text_of(rows_.example(row), *tokenizer_);
}

/// What the last answer of a row follows; ChatGLM's recipe for ADGEN cuts texts by its own rule.
Question Evaluation::question(int64_t row) const {
  const auto start = model_->answer_start();
  Question question{
      .prompt = {.row = rows_.number(row),
                 .ids = data::question_ids(rows_.example(row), start.empty() ? std::nullopt : std::optional(start.back()))},
      .text = {},
      .reference = {}};
  if (tokenizer_ == nullptr) return question;
  const data::TextPair text = this->text(row);
  question.text = text.prompt;
  if (!text.response.empty()) question.reference = said(text.response);
  if (config_.data.format == "adgen" && tokenizer_->glm_ids()) {
    const auto encoded =
        data::encode_glm_adgen_eval(text, *tokenizer_, config_.data.max_source_length, config_.data.max_target_length);
    question.prompt.ids = encoded.input_ids;
    while (!question.prompt.ids.empty() && question.prompt.ids.back() == pad_id_) question.prompt.ids.pop_back();
    if (question.reference) question.reference = readable_text(*tokenizer_, encoded.reference_ids);
  }
  return question;
}

std::string Evaluation::said(const std::string& text) const {
  return std::string(is_conversation(rows_.format) ? data::strip(text) : text);
}

Prediction Evaluation::prediction(const Question& question, const generate::Generation& generation) const {
  Prediction prediction{question.prompt.row, question.text, {}, question.reference, {}};
  if (rows_.format == "tokens" || tokenizer_ == nullptr) prediction.token_ids = generation.token_ids;
  if (tokenizer_ != nullptr) prediction.prediction = said(generated_text(*tokenizer_, generation));
  return prediction;
}

std::vector<int64_t> Evaluation::row_numbers() const {
  std::vector<int64_t> numbers;
  for (int64_t row = 0; row < rows_.size(); ++row) numbers.push_back(rows_.number(row));
  return numbers;
}

std::vector<Question> Evaluation::questions() const {
  std::vector<Question> all;
  for (int64_t row = 0; row < rows_.size(); ++row) all.push_back(question(row));
  return all;
}

generate::GenerateOptions Evaluation::options() const {
  generate::GenerateOptions options = generate_options(config_, *model_);
  if (config_.run.mode == "eval") options.max_new_tokens = config_.eval.max_new_tokens;
  return options;
}

std::string Evaluation::identity() const {
  std::vector<std::set<std::string>> adapters;  // the files of each
  for (const auto& [name, directory] : chosen_adapters_) {
    auto& files = adapters.emplace_back();
    for (const auto& entry : std::filesystem::directory_iterator(directory)) {
      if (entry.is_regular_file()) files.insert(file_digest(entry.path()));
    }
  }
  std::set<std::string> model;
  if (!base_.empty()) {
    for (const auto& entry : std::filesystem::directory_iterator(base_)) {
      if (!entry.is_regular_file()) continue;
      // Weights are too large to read for this; whoever writes them anew changes when they were written.
      model.insert(fmt::format("{} {} {}", entry.path().filename().string(), entry.file_size(),
                               entry.last_write_time().time_since_epoch().count()));
    }
  }
  RunConfig shown = config_;
  shown.run.output_dir = "/";
  shown.eval.metrics.clear();
  const OrderedJson json = {{"config", config::dump_run_config(shown)},
                            {"adapters", adapters},
                            {"model", model},
                            {"tokenizer", tokenizer_ == nullptr ? "" : tokenizer_->fingerprint()},
                            {"rows", file_digest(file_of_rows(*config_.data.eval.path))}};
  return json.dump();
}

void Evaluation::predict(PredictionFile& file, ScoringThread* scores) {
  const auto score = [&](const Prediction& one) {
    if (scores != nullptr) scores->add(one.row, one.prediction.value_or(""), one.reference.value_or(""));
  };
  const auto all = questions();
  std::vector<generate::PromptRow> prompts;
  std::vector<const Question*> asked;
  for (const auto& one : all) {
    const auto there = file.there().find(one.prompt.row);
    if (there == file.there().end()) {
      prompts.push_back(one.prompt);
      asked.push_back(&one);
    } else {
      score(there->second);
    }
  }
  if (asked.size() < all.size())
    log::info(fmt::format("{} of {} rows are there from an earlier run", all.size() - asked.size(), all.size()));
  RowProgress progress(static_cast<int64_t>(asked.size()));
  generate::complete_all(*model_, prompts, options(), {.max_sequences = config_.generate.batch_size}, device_,
                         [&](int64_t index, const generate::Generation& generation) {
                           check_for_stop();
                           const Prediction one = prediction(*asked.at(static_cast<size_t>(index)), generation);
                           file.add(one);
                           score(one);
                           progress.count();
                         });
}

}  // namespace lora::cli
