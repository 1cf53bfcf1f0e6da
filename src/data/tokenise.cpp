#include "data/tokenise.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "data/json_fields.h"
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
std::vector<Outcome<Value>> make_all(const RowReader& reader, std::vector<RawRow>& rows, const Make& make) {
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

void count_bad_row(const std::string& problem, const DatasetOptions& options, TokenisedRows& read) {
  const std::string_view advice = problem.find("; correct the ") == std::string::npos ? "; correct the row, or" : ", or";
  require<DataError>(options.skip_bad_rows, "{}{} leave such rows out with data.on_bad_row: skip", problem, advice);
  ++read.num_bad_rows;
  if (read.bad_row_reasons.size() < kMaxReasons) read.bad_row_reasons.push_back(problem);
}

/// Leaves out rows that an earlier run has read; it has counted the bad ones among them.
void skip_rows(RowReader& reader, int64_t rows, TokenisedRows& read) {
  while (rows > 0) {
    const auto skipped = std::ssize(reader.next(std::min(kRowsPerBatch, static_cast<size_t>(rows))));
    if (skipped == 0) return;
    rows -= skipped;
    read.num_rows += skipped;
  }
}

/// Passes `make` of every row, in order, to `take` with the row's number. What `make` throws about a row stops the
/// reading, or is counted when bad rows are to be skipped.
template <class Value, class Make, class Take>
void read_rows(const Path& file, const DatasetOptions& options, const TokeniseOptions& how, TokenisedRows& read, const Make& make,
               const Take& take) {
  RowReader reader(file);
  skip_rows(reader, how.skipped_rows, read);
  ReadingProgress progress(file);
  for (auto rows = reader.next(kRowsPerBatch); !rows.empty(); rows = reader.next(kRowsPerBatch)) {
    auto outcomes = make_all<Value>(reader, rows, make);
    for (size_t i = 0; i < rows.size(); ++i) {
      ++read.num_rows;
      if (outcomes[i].problem.empty()) {
        take(rows[i].number, std::move(outcomes[i].value));
      } else {
        count_bad_row(outcomes[i].problem, options, read);
      }
    }
    progress.show(read.num_rows);
    if (how.between_batches) how.between_batches();
  }
}

void tokenise_rows(const Path& file, const DatasetOptions& options, const Tokenizer* tokenizer, const TokeniseOptions& how,
                   TokenisedRows& read, const TakeRow& take_row) {
  const RowEncoder encoder(options, tokenizer);
  const auto encode = [&](const formats::Json& row) { return encoder.encode(row); };
  const auto take = [&](int64_t number, EncodedRow encoded) {
    encoded.example.row = number;
    read.num_truncated += encoded.truncated;
    take_row(std::move(encoded), read);
  };
  read_rows<EncodedRow>(file, options, how, read, encode, take);
}

/// A document's ids between begin and end token.
std::vector<int32_t> encode_document(const Tokenizer& tokenizer, std::string_view text, int64_t vocab_size) {
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
  BlockBuilder(int64_t max_length, const TokenisedRows& read, const TakeRow& take_row)
      : max_length_(max_length), read_(read), take_row_(take_row) {}

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
    take_row_({.example = {.input_ids = block_, .labels = block_, .row = ++blocks_}, .truncated = false, .text = {}}, read_);
    block_.clear();
  }

  int64_t max_length_, blocks_ = 0;
  const TokenisedRows& read_;
  const TakeRow& take_row_;
  std::vector<int32_t> block_;
};

void require_utf8(std::string_view text, const Path& file) {
  int64_t line = 1;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size() - 1);
    require<DataError>(is_utf8(text.substr(0, end + 1)), "[{}:{}] text must be UTF-8; this line is not; convert the file",
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

void tokenise_text(const Path& file, const DatasetOptions& options, const Tokenizer& tokenizer, const TokeniseOptions& how,
                   TokenisedRows& read, const TakeRow& take_row) {
  BlockBuilder blocks(options.max_length, read, take_row);
  if (is_json_file(file)) {
    const std::string column = options.prompt_column.value_or("text");
    const auto encode = [&](const formats::Json& row) {
      require<DataError>(row.is_object(), "a row must be a JSON object; found {}", row.type_name());
      return encode_document(tokenizer, required_text(row, column), options.vocab_size);
    };
    const auto take = [&](int64_t, const std::vector<int32_t>& ids) { blocks.add_document(ids); };
    read_rows<std::vector<int32_t>>(file, options, how, read, encode, take);
  } else {
    const std::string text = read_plain_text(file);
    if (!text.empty()) {
      read.num_rows = 1;
      blocks.add_document(encode_document(tokenizer, text, options.vocab_size));
    }
  }
  blocks.finish();
}

}  // namespace

void tokenise(const Path& file, const DatasetOptions& options, const Tokenizer* tokenizer, const TokeniseOptions& how,
              TokenisedRows& read, const TakeRow& take_row) {
  if (options.format == "text") {
    tokenise_text(file, options, *tokenizer, how, read, take_row);
  } else {
    tokenise_rows(file, options, tokenizer, how, read, take_row);
  }
}

}  // namespace lora::data
