#include "lora/data/dataset.h"

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "data/row_encoder.h"
#include "data/row_reader.h"
#include "data/text_encoder.h"
#include "lora/core/file.h"
#include "lora/core/text.h"

namespace lora::data {
namespace {

constexpr size_t kMaxReasons = 10;

void check_options(const DatasetOptions& options, const Tokenizer* tokenizer) {
  require<ConfigError>(
      options.max_source_length >= 1 && options.max_target_length >= 1 && options.max_length >= 2,
      "[data] max_source_length and max_target_length must be at least 1, max_length "
      "at least 2; found {}, {} and {}",
      options.max_source_length, options.max_target_length, options.max_length);
  require<ConfigError>(tokenizer != nullptr || options.format == "tokens",
                       "[data.format] format {} needs a tokenizer; found none; name one with "
                       "tokenizer.path, or use token data",
                       options.format);
}

/// Passes every row to `use`. What `use` throws about a row stops the reading, or is counted when
/// bad rows are to be skipped.
template <class Use>
void read_rows(const Path& file, const DatasetOptions& options, Dataset& dataset, const Use& use) {
  for_each_row(file, [&](const RawRow& row) {
    ++dataset.num_rows;
    std::string reason;
    try {
      use(row);
      return;
    } catch (const FormatError& error) {  // not JSON; says where itself
      reason = error.what();
    } catch (const DataError& error) {
      reason = fmt::format("[{}] {}", row.where, error.what());
    }
    require<DataError>(options.skip_bad_rows,
                       "{}; correct the row, or leave such rows out with data.on_bad_row: skip",
                       reason);
    ++dataset.num_bad_rows;
    if (dataset.bad_row_reasons.size() < kMaxReasons) dataset.bad_row_reasons.push_back(reason);
  });
}

void load_rows(const Path& file, const DatasetOptions& options, const Tokenizer* tokenizer,
               Dataset& dataset) {
  const RowEncoder encoder(options, tokenizer);
  read_rows(file, options, dataset, [&](const RawRow& row) {
    EncodedRow encoded = encoder.encode(row.parse());
    encoded.example.row = row.number;
    dataset.examples.push_back(std::move(encoded.example));
    dataset.num_truncated += encoded.truncated;
    const bool keeps_text = std::cmp_less(dataset.text_pairs.size(), options.keep_text_pairs);
    if (keeps_text && encoded.text) dataset.text_pairs.push_back(std::move(*encoded.text));
  });
}

/// Joins documents and cuts the stream into blocks.
class BlockBuilder {
 public:
  BlockBuilder(const DatasetOptions& options, const Tokenizer& tokenizer, Dataset& dataset)
      : options_(options), tokenizer_(tokenizer), dataset_(dataset) {}

  void add_document(std::string_view text) {
    std::vector<int32_t> ids;
    const auto append = [&](int64_t id) {
      if (id >= 0) ids.push_back(static_cast<int32_t>(id));
    };
    append(tokenizer_.bos_id());
    for (const int64_t id : encode_long_text(tokenizer_, text)) append(id);
    append(tokenizer_.eos_id());
    check_vocabulary(ids, options_.vocab_size);
    for (const int32_t id : ids) add_token(id);
  }

  void finish() {
    if (block_.size() > 1) close_block();
  }

 private:
  void add_token(int32_t id) {
    block_.push_back(id);
    if (std::cmp_equal(block_.size(), options_.max_length)) close_block();
  }

  void close_block() {
    dataset_.examples.push_back(
        {.input_ids = block_, .labels = block_, .row = dataset_.size() + 1});
    block_.clear();
  }

  const DatasetOptions& options_;
  const Tokenizer& tokenizer_;
  Dataset& dataset_;
  std::vector<int32_t> block_;
};

void require_utf8(std::string_view text, const Path& file) {
  int64_t line = 1;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size() - 1);
    require<DataError>(is_utf8(text.substr(0, end + 1)),
                       "[{}:{}] text must be UTF-8; this line is not; convert the file",
                       file.string(), line);
    text.remove_prefix(end + 1);
    ++line;
  }
}

std::string read_plain_text(const Path& file) {
  std::string text = read_file(file, 4ull << 30);
  if (text.starts_with("\xef\xbb\xbf")) text.erase(0, 3);
  require_utf8(text, file);
  return text;
}

void load_text(const Path& file, const DatasetOptions& options, const Tokenizer& tokenizer,
               Dataset& dataset) {
  BlockBuilder blocks(options, tokenizer, dataset);
  const std::string extension = file.extension().string();
  if (extension == ".json" || extension == ".jsonl") {
    const std::string column = options.prompt_column.value_or("text");
    read_rows(file, options, dataset, [&](const RawRow& row) {
      const formats::Json json = row.parse();
      require<DataError>(json.is_object(), "a row must be a JSON object; found {}",
                         json.type_name());
      blocks.add_document(required_text(json, column));
    });
  } else {
    const std::string text = read_plain_text(file);
    if (!text.empty()) {
      dataset.num_rows = 1;
      blocks.add_document(text);
    }
  }
  blocks.finish();
}

}  // namespace

Dataset load_dataset(const Path& file, const DatasetOptions& options, const Tokenizer* tokenizer) {
  check_options(options, tokenizer);
  Dataset dataset;
  if (options.format == "text") {
    load_text(file, options, *tokenizer, dataset);
  } else {
    load_rows(file, options, tokenizer, dataset);
  }
  require<DataError>(dataset.size() > 0,
                     "[{}] a data set must have usable rows; found {} rows, {} of them bad{}",
                     file.string(), dataset.num_rows, dataset.num_bad_rows,
                     dataset.bad_row_reasons.empty()
                         ? std::string()
                         : fmt::format(" (the first: {})", dataset.bad_row_reasons.front()));
  return dataset;
}

Dataset adgen(const Path& file, const Tokenizer& tokenizer, const AdgenOptions& options) {
  return load_dataset(file,
                      {.format = "adgen",
                       .max_source_length = options.max_source,
                       .max_target_length = options.max_target},
                      &tokenizer);
}

std::vector<int64_t> encode_prompt(const Tokenizer& tokenizer, std::string_view prompt) {
  std::vector<int64_t> ids = tokenizer.encode(prompt);
  if (tokenizer.bos_id() >= 0) ids.insert(ids.begin(), tokenizer.bos_id());
  return ids;
}

std::vector<int64_t> encode_completion(const Tokenizer& tokenizer, std::string_view completion) {
  std::vector<int64_t> ids = tokenizer.encode(completion);
  if (tokenizer.eos_id() >= 0) ids.push_back(tokenizer.eos_id());
  return ids;
}

}  // namespace lora::data
