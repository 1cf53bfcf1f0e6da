#include "cli/row_reader.h"

#include "core/check.h"
#include "lora/data/dataset.h"

namespace lora::cli {
namespace {

using formats::Json;

std::vector<int32_t> narrow(const std::vector<int64_t>& ids) { return {ids.begin(), ids.end()}; }

std::vector<int32_t> integers(const Json& row, const char* key, const std::string& where) {
  const Json& list = row.at(key);
  require<DataError>(list.is_array(), "[{}] {} must be a list of whole numbers; found {}", where, key, list.type_name());
  std::vector<int32_t> values;
  values.reserve(list.size());
  for (const Json& item : list) {
    const bool fits = item.is_number_integer() && item >= INT32_MIN && item <= INT32_MAX;
    require<DataError>(fits, "[{}] {} must be a list of whole numbers; found {}", where, key, item.dump());
    values.push_back(item.get<int32_t>());
  }
  return values;
}

std::string text(const Json& row, const char* key, const std::string& where) {
  require<DataError>(row.at(key).is_string(), "[{}] {} must be a string; found {}", where, key, row.at(key).type_name());
  return row.at(key).get<std::string>();
}

void check_labels(const data::Example& example, const std::string& where) {
  require<DataError>(example.labels.size() == example.input_ids.size(),
                     "[{}] labels must be as many as input_ids; found {} and {}", where, example.labels.size(),
                     example.input_ids.size());
  for (size_t i = 0; i < example.labels.size(); ++i) {
    require<DataError>(example.labels[i] == kIgnoreLabel || example.labels[i] == example.input_ids[i],
                       "[{}] a label must be the token at its place or -100; found {} at {}", where, example.labels[i], i);
  }
}

}  // namespace

data::Example RowReader::read(const std::string& line, int64_t number) const {
  const std::string where = fmt::format("{}:{}", file_, number);
  const Json row = formats::parse_json(line, where);
  require<DataError>(row.is_object(), "[{}] a row must be a JSON object; found {}", where, row.type_name());
  data::Example example = tokens_of(row, where);
  example.row = number;
  require<DataError>(!example.input_ids.empty(), "[{}] a row must have at least one token; found none", where);
  if (row.contains("labels")) example.labels = integers(row, "labels", where);
  check_labels(example, where);
  return example;
}

data::Example RowReader::tokens_of(const Json& row, const std::string& where) const {
  data::Example example;
  if (row.contains("input_ids")) {
    example.input_ids = example.labels = integers(row, "input_ids", where);
    for (const int32_t id : example.input_ids) {
      require<DataError>(id >= 0 && id < loaded_.model->vocab_size(),
                         "[{}] token ids must be below the vocabulary of {}; found {}", where, loaded_.model->vocab_size(), id);
    }
  } else if (row.contains("text")) {
    const auto& tokenizer = require_tokenizer(loaded_, "a row with text");
    example.input_ids = example.labels = narrow(data::encode_prompt(tokenizer, text(row, "text", where)));
  } else if (row.contains("prompt") && row.contains("completion")) {
    const auto& tokenizer = require_tokenizer(loaded_, "a row with prompt and completion");
    example.input_ids = narrow(data::encode_prompt(tokenizer, text(row, "prompt", where)));
    example.labels.assign(example.input_ids.size(), static_cast<int32_t>(kIgnoreLabel));
    const auto completion = narrow(data::encode_completion(tokenizer, text(row, "completion", where)));
    example.input_ids.insert(example.input_ids.end(), completion.begin(), completion.end());
    example.labels.insert(example.labels.end(), completion.begin(), completion.end());
  } else {
    fail<DataError>("[{}] a row must have input_ids, text, or prompt and completion; found none of them", where);
  }
  return example;
}

}  // namespace lora::cli
