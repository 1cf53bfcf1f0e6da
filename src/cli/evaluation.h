// Model, adapters and data of lora eval and lora predict.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/best_result.h"
#include "cli/options.h"
#include "cli/prediction_file.h"
#include "cli/scoring_thread.h"
#include "lora/data/dataset.h"
#include "lora/generate/complete_all.h"
#include "lora/train/evaluate.h"

namespace lora::cli {

/// A row to answer, and what was expected; texts as far as there are any.
struct Question {
  generate::PromptRow prompt;
  std::optional<std::string> text, reference;
};

/// Throws ConfigError unless rows of that format ask something; `shown` is what the message says was found.
void require_answerable(const std::string& format, const std::string& shown);

/// Model, adapters and data of one evaluation.
class Evaluation {
 public:
  Evaluation(config::RunConfig config, const std::string& adapter);

  train::EvalResult loss();
  /// Generates what is not in `file` yet, row by row into it and `scores` (may be null).
  void predict(PredictionFile& file, ScoringThread* scores);
  /// Tells runs apart whose predictions would differ.
  std::string identity() const;
  const config::RunConfig& config() const { return config_; }
  std::vector<int64_t> row_numbers() const;
  /// Whether the rows are questions with answers, and can be read as text.
  bool has_texts() const;
  /// Throws ConfigError, DataError unless every row asks something.
  void require_questions() const;

 private:
  void choose(const std::string& adapter);
  config::RunConfig with_base() const;
  std::vector<Question> questions() const;
  Question question(int64_t row) const;
  data::TextPair text(int64_t row) const;
  std::string said(const std::string& text) const;
  Prediction prediction(const Question& question, const generate::Generation& generation) const;
  generate::GenerateOptions options() const;

  config::RunConfig config_;
  at::Device device_;
  std::shared_ptr<const data::Tokenizer> tokenizer_;
  std::shared_ptr<nn::CausalLMImpl> model_;
  ResultParts own_result_;  ///< what is evaluated of that which a run left in output_dir
  std::vector<NamedAdapter> chosen_adapters_;
  Path base_;  ///< of the model; empty: fresh weights
  AdapterSets adapters_;
  data::Dataset rows_;
  int64_t pad_id_ = 0;
};

}  // namespace lora::cli
