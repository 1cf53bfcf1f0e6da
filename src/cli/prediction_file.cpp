#include "cli/prediction_file.h"

#include <fstream>
#include <utility>

#include "core/check.h"
#include "formats/json.h"
#include "lora/core/error.h"
#include "lora/core/file.h"

namespace lora::cli {
namespace {

using formats::OrderedJson;

OrderedJson text_or_null(const std::optional<std::string>& text) { return text ? OrderedJson(*text) : OrderedJson(); }

std::optional<std::string> text_at(const formats::Json& json, const char* key) {
  const auto& value = json.at(key);
  return value.is_null() ? std::nullopt : std::optional(value.get<std::string>());
}

std::string line_of(const Prediction& one) {
  OrderedJson json = {{"row", one.row},
                      {"prompt", text_or_null(one.prompt)},
                      {"prediction", text_or_null(one.prediction)},
                      {"reference", text_or_null(one.reference)}};
  if (one.token_ids) json["token_ids"] = *one.token_ids;
  return json.dump() + "\n";
}

Prediction parse(const std::string& line, const std::string& where) {
  const auto json = formats::parse_json(line, where);
  Prediction one{.row = json.at("row").get<int64_t>(),
                 .prompt = text_at(json, "prompt"),
                 .prediction = text_at(json, "prediction"),
                 .reference = text_at(json, "reference"),
                 .token_ids = {}};
  if (json.contains("token_ids")) one.token_ids = json.at("token_ids").get<std::vector<int64_t>>();
  return one;
}

/// The whole lines of a file that an interrupted run left, as far as they are predictions.
std::map<int64_t, Prediction> read_part(const Path& part, const std::string& identity) {
  std::map<int64_t, Prediction> predictions;
  std::ifstream stream(part);
  std::string line;
  if (!std::getline(stream, line) || line != identity) return predictions;
  while (std::getline(stream, line) && !stream.eof()) {
    try {
      Prediction one = parse(line, part.string());
      predictions.emplace(one.row, std::move(one));
    } catch (const std::exception&) {  // damaged: the row is predicted anew
      break;
    }
  }
  return predictions;
}

}  // namespace

std::pair<std::string, std::string> read_answer(const std::string& line, const std::string& where) {
  const auto json = formats::parse_json(line, where);
  const auto is_text = [&](const char* key) { return json.is_object() && json.contains(key) && json.at(key).is_string(); };
  for (const auto& [prediction, reference] : {std::pair{"prediction", "reference"}, std::pair{"predict", "label"}}) {
    if (is_text(prediction) && is_text(reference))
      return {json.at(prediction).get<std::string>(), json.at(reference).get<std::string>()};
  }
  fail<FormatError>(
      "[{}] a line must hold the texts \"prediction\" and \"reference\" (or \"predict\" and \"label\"); it has neither", where);
}

bool has_answers_of_another(const Path& file, const std::string& identity) {
  std::ifstream stream(part_of(file));
  std::string line;
  return std::getline(stream, line) && line != identity;
}

PredictionFile::PredictionFile(Path file, const std::string& identity) : file_(std::move(file)), part_(part_of(file_)) {
  predictions_ = read_part(part_, identity);
  std::string kept = identity + "\n";
  for (const auto& [row, one] : predictions_) kept += line_of(one);
  write_file_atomically(part_, kept);
}

void PredictionFile::add(const Prediction& prediction) {
  std::ofstream stream(part_, std::ios::app);
  stream << line_of(prediction);
  stream.flush();
  require<IoError>(stream.good(), "[predictions] {} must be writable; a line could not be added; is the disk full?",
                   part_.string());
  predictions_.insert_or_assign(prediction.row, prediction);
}

void PredictionFile::finish() {
  std::string text;
  for (const auto& [row, one] : predictions_) text += line_of(one);
  write_file_atomically(file_, text);
  std::filesystem::remove(part_);
}

}  // namespace lora::cli
