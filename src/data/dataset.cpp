#include "lora/data/dataset.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "data/dataset_cache.h"
#include "data/row_encoder.h"
#include "data/row_reader.h"
#include "data/text_encoder.h"
#include "lora/core/file.h"
#include "lora/core/log.h"
#include "lora/core/stopwatch.h"
#include "lora/core/text.h"

namespace lora::data {
namespace {

constexpr size_t kMaxReasons = 10;
constexpr size_t kRowsPerBatch = 2048;
constexpr int64_t kRowsPerTask = 32;
constexpr double kSecondsBetweenLines = 5;

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

/// A line of the log now and then while a large file is read.
class ReadingProgress {
 public:
  explicit ReadingProgress(const Path& file) : name_(file.filename().string()) {}

  void show(int64_t num_rows) {
    if (since_line_.seconds() < kSecondsBetweenLines) return;
    since_line_.restart();
    log::info(fmt::format("{}: {} rows tokenised, {:.0f} rows/s", name_, with_thousands(num_rows),
                          static_cast<double>(num_rows) / since_start_.seconds()));
  }

 private:
  std::string name_;
  Stopwatch since_start_, since_line_;
};

/// What became of a row: a value, or the reason why there is none.
template <class Value>
struct Outcome {
  Value value;
  std::string problem;
};

/// `make` of every row of a batch, by several threads.
template <class Value, class Make>
std::vector<Outcome<Value>> make_all(const RowReader& reader, std::vector<RawRow>& rows,
                                     const Make& make) {
  std::vector<Outcome<Value>> outcomes(rows.size());
  at::parallel_for(0, static_cast<int64_t>(rows.size()), kRowsPerTask, [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      RawRow& row = rows[static_cast<size_t>(i)];
      Outcome<Value>& outcome = outcomes[static_cast<size_t>(i)];
      try {
        outcome.value = make(reader.parse(row));
      } catch (const FormatError& error) {  // not JSON; says where itself
        outcome.problem = error.what();
      } catch (const DataError& error) {
        outcome.problem = fmt::format("[{}] {}", reader.where(row), error.what());
      }
    }
  });
  return outcomes;
}

void count_bad_row(const std::string& problem, const DatasetOptions& options, Dataset& dataset) {
  require<DataError>(options.skip_bad_rows,
                     "{}; correct the row, or leave such rows out with data.on_bad_row: skip",
                     problem);
  ++dataset.num_bad_rows;
  if (dataset.bad_row_reasons.size() < kMaxReasons) dataset.bad_row_reasons.push_back(problem);
}

/// Passes `make` of every row, in order, to `take` with the row's number. What `make` throws about a row stops the
/// reading, or is counted when bad rows are to be skipped.
template <class Value, class Make, class Take>
void read_rows(const Path& file, const DatasetOptions& options, Dataset& dataset, const Make& make,
               const Take& take) {
  RowReader reader(file);
  ReadingProgress progress(file);
  for (auto rows = reader.next(kRowsPerBatch); !rows.empty(); rows = reader.next(kRowsPerBatch)) {
    auto outcomes = make_all<Value>(reader, rows, make);
    for (size_t i = 0; i < rows.size(); ++i) {
      ++dataset.num_rows;
      if (outcomes[i].problem.empty()) {
        take(rows[i].number, std::move(outcomes[i].value));
      } else {
        count_bad_row(outcomes[i].problem, options, dataset);
      }
    }
    progress.show(dataset.num_rows);
  }
}

void load_rows(const Path& file, const DatasetOptions& options, const Tokenizer* tokenizer,
               Dataset& dataset) {
  const RowEncoder encoder(options, tokenizer);
  const auto encode = [&](const formats::Json& row) { return encoder.encode(row); };
  const auto take = [&](int64_t number, EncodedRow encoded) {
    encoded.example.row = number;
    dataset.add(encoded.example);
    dataset.num_truncated += encoded.truncated;
    const bool keeps_text = std::cmp_less(dataset.text_pairs.size(), options.keep_text_pairs);
    if (keeps_text && encoded.text) dataset.text_pairs.push_back(std::move(*encoded.text));
  };
  read_rows<EncodedRow>(file, options, dataset, encode, take);
}

/// A document's ids between begin and end token.
std::vector<int32_t> encode_document(const Tokenizer& tokenizer, std::string_view text,
                                     int64_t vocab_size) {
  std::vector<int32_t> ids;
  const auto append = [&](int64_t id) {
    if (id >= 0) ids.push_back(static_cast<int32_t>(id));
  };
  append(tokenizer.bos_id());
  for (const int64_t id : encode_long_text(tokenizer, text)) append(id);
  append(tokenizer.eos_id());
  check_vocabulary(ids, vocab_size);
  return ids;
}

/// Joins documents and cuts the stream into blocks.
class BlockBuilder {
 public:
  BlockBuilder(int64_t max_length, Dataset& dataset) : max_length_(max_length), dataset_(dataset) {}

  void add_document(const std::vector<int32_t>& ids) {
    for (const int32_t id : ids) {
      block_.push_back(id);
      if (std::cmp_equal(block_.size(), max_length_)) close_block();
    }
  }

  void finish() {
    if (block_.size() > 1) close_block();
  }

 private:
  void close_block() {
    dataset_.add({.input_ids = block_, .labels = block_, .row = dataset_.size() + 1});
    block_.clear();
  }

  int64_t max_length_;
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
  BlockBuilder blocks(options.max_length, dataset);
  if (is_json_file(file)) {
    const std::string column = options.prompt_column.value_or("text");
    const auto encode = [&](const formats::Json& row) {
      require<DataError>(row.is_object(), "a row must be a JSON object; found {}", row.type_name());
      return encode_document(tokenizer, required_text(row, column), options.vocab_size);
    };
    const auto take = [&](int64_t, const std::vector<int32_t>& ids) { blocks.add_document(ids); };
    read_rows<std::vector<int32_t>>(file, options, dataset, encode, take);
  } else {
    const std::string text = read_plain_text(file);
    if (!text.empty()) {
      dataset.num_rows = 1;
      blocks.add_document(encode_document(tokenizer, text, options.vocab_size));
    }
  }
  blocks.finish();
}

Dataset tokenise(const Path& file, const DatasetOptions& options, const Tokenizer* tokenizer) {
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

}  // namespace

Dataset::Dataset(std::shared_ptr<const MappedFile> file, formats::TokenCache cache)
    : num_rows(cache.num_rows),
      num_bad_rows(cache.num_bad_rows),
      num_truncated(cache.num_truncated),
      bad_row_reasons(std::move(cache.bad_row_reasons)),
      file_(std::move(file)),
      mapped_(cache.rows) {
  for (auto& [prompt, response] : cache.text_pairs) {
    text_pairs.push_back({std::move(prompt), std::move(response)});
  }
}

void Dataset::add(const Example& example) {
  const auto& [ids, labels, number] = example;
  require<ConfigError>(file_ == nullptr, "[data set] rows of a cache file cannot be added to");
  require<DataError>(!ids.empty() && labels.size() == ids.size(),
                     "[row {}] must have tokens and a label for each; found {} tokens, {} labels",
                     number, ids.size(), labels.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    require<DataError>(ids[i] >= 0 && (labels[i] == ids[i] || labels[i] == kIgnoreLabel),
                       "[row {}] ids must be at least 0 and labels their ids or {}; found {} and {}",
                       number, kIgnoreLabel, ids[i], labels[i]);
  }
  for (size_t i = 0; i < ids.size(); ++i) {
    tokens_.push_back(labels[i] == kIgnoreLabel ? ids[i] | formats::kMaskedToken : ids[i]);
  }
  ends_.push_back(static_cast<int64_t>(tokens_.size()));
  numbers_.push_back(number);
}

Example Dataset::example(int64_t row) const {
  Example example;
  read(row, example);
  return example;
}

formats::TokenRows Dataset::rows() const {
  return file_ ? mapped_ : formats::TokenRows{tokens_, ends_, numbers_};
}

int64_t Dataset::length(int64_t row) const {
  const auto& ends = rows().ends;
  const auto i = static_cast<size_t>(row);
  return ends[i] - (i == 0 ? 0 : ends[i - 1]);
}

void Dataset::read(int64_t row, Example& example) const {
  const formats::TokenRows rows = this->rows();
  const auto i = static_cast<size_t>(row);
  const auto size = static_cast<size_t>(length(row));
  const auto tokens = rows.tokens.subspan(static_cast<size_t>(rows.ends[i]) - size, size);
  example.input_ids.resize(size);
  example.labels.resize(size);
  for (size_t k = 0; k < size; ++k) {
    const int32_t id = tokens[k] & formats::kTokenId;
    example.input_ids[k] = id;
    example.labels[k] = tokens[k] < 0 ? static_cast<int32_t>(kIgnoreLabel) : id;
  }
  example.row = rows.numbers[i];
}

Dataset load_dataset(const Path& file, const DatasetOptions& options, const Tokenizer* tokenizer) {
  check_options(options, tokenizer);
  const auto cache = DatasetCache::find(file, options, tokenizer);
  if (cache) {
    if (auto cached = cache->load()) return *std::move(cached);
  }
  Dataset dataset = tokenise(file, options, tokenizer);
  if (cache) cache->save(dataset);
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
