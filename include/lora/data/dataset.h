#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/core/mapped_file.h"
#include "lora/core/path.h"
#include "lora/data/example.h"
#include "lora/data/row_source.h"
#include "lora/data/tokenizer.h"
#include "lora/formats/prompt_template.h"
#include "lora/formats/records.h"
#include "lora/formats/token_cache.h"

namespace lora::data {

/// How rows become tokens.
struct DatasetOptions {
  /// adgen | alpaca | chat | sharegpt | completion | text | tokens | records | a registered one (format_registry.h)
  std::string format = "adgen";
  int64_t max_source_length = 64;  ///< adgen: tokens of the prompt, begin token included
  int64_t max_target_length = 64;  ///< adgen: tokens of the answer, end token included
  int64_t max_length = 2048;       ///< other formats: tokens of a row; `text`: tokens of a block
  bool truncate_long = true;       ///< false: a longer row is a bad row
  bool skip_bad_rows = false;      ///< false: the first bad row throws
  bool answers_optional = false;   ///< rows without an answer, or with a blank one, are questions: their response is empty
  bool train_on_sop = false;       ///< ChatGLM's adgen: <sop> is a target, too
  bool ignore_pad_in_loss = true;  ///< ChatGLM's adgen; false: rows are filled up with padding, which is a target
  int64_t vocab_size = 0;          ///< ids must be below it; 0: not checked
  /// Other names for the two fields of adgen, completion and alpaca rows; prompt_column also for
  /// `text`.
  std::optional<std::string> prompt_column = std::nullopt, response_column = std::nullopt;
  /// Of chat, sharegpt and alpaca rows; nothing: that of the tokenizer's model (model_template).
  std::optional<formats::PromptTemplate> prompt_template = std::nullopt;
  int64_t keep_text_pairs = 0;  ///< how many first rows keep their text in text_pairs
  /// Where tokens are kept for the next time, in one file for every content, tokenizer and settings; nothing: nowhere.
  std::optional<Path> cache_dir = std::nullopt;
};

/// A data set as tokens, in memory or in mapped files.
class Dataset : public RowSource {
 public:
  std::string format;  ///< of the rows; of records: of what they were made of
  std::vector<TextPair> text_pairs;
  int64_t num_rows = 0;                      ///< rows read, good and bad; `text`: documents
  int64_t num_bad_rows = 0;                  ///< left out; always 0 unless skip_bad_rows
  int64_t num_truncated = 0;                 ///< rows cut to the limits
  std::vector<std::string> bad_row_reasons;  ///< the first ten
  /// The cache file that the tokens were read from; nothing: the tokenizer made them just now.
  std::optional<Path> cache_file;

  Dataset() = default;
  /// The rows of a parsed cache file, read where they lie.
  Dataset(std::shared_ptr<const MappedFile> file, formats::TokenCache cache);
  /// The rows of record files.
  explicit Dataset(std::shared_ptr<const formats::RecordSet> set);

  /// Adds a row at the end. Throws DataError when it has no tokens, a negative id, or a label that is neither its
  /// token's id nor kIgnoreLabel; ConfigError for a set in a cache file, which cannot grow.
  void add(const Example& example);
  /// A row (from 0) by itself.
  Example example(int64_t row) const;

  int64_t size() const override { return size_; }
  int64_t length(int64_t row) const override;
  void read(int64_t row, Example& example) const override;
  /// A row's tokens as they are kept, see TokenRows.
  std::span<const int32_t> tokens(int64_t row) const;
  /// A row's place in the source, from 1.
  int64_t number(int64_t row) const;
  /// All rows as they are kept. Throws ConfigError where they lie in several files.
  formats::TokenRows rows() const;

 private:
  void add_part(const formats::TokenRows& rows);
  std::pair<formats::TokenRows, size_t> find(int64_t row) const;

  std::vector<int32_t> tokens_;
  std::vector<int64_t> ends_, numbers_;
  std::shared_ptr<const void> held_;  ///< the files of the parts; null: the rows are above
  std::vector<formats::TokenRows> parts_;
  std::vector<int64_t> part_ends_;    ///< rows up to the end of each part
  int64_t first_row_ = 0, size_ = 0;  ///< the rows of all parts that are the set's
};

/// Reads and tokenises a file. JSON lines, or one JSON array of objects, for every format but
/// `text`, which reads `{"text": ...}` rows from .json/.jsonl files and anything else as one
/// plain-text document. Blank lines are no rows.
///
/// - adgen: {"content", "summary"}; prompt = <s> content, answer = summary </s>, each cut to its
/// limit
///   (a cut answer keeps its </s>). Rows with an empty field are bad. With ChatGLM's tokenizer see glm_adgen.h.
/// - completion: {"prompt", "completion"}; <s> prompt, completion </s>, cut at max_length.
/// - alpaca: {"instruction", "input"?, "output", "system"?, "history"?} as a conversation in the template, the input as
///   PromptTemplate::input says, history as [[question, answer], ...].
/// - chat, sharegpt: {"messages": [{"role", "content"}]} or {"conversations": [{"from", "value"}]} (human and gpt stand for user
///   and assistant), "system"?, in the template (chat_template.h); every answer is a target.
/// - registered formats: see format_registry.h.
/// - text: documents, each between begin and end token, joined and cut into blocks; every token is
/// a
///   target. A last block of a single token is left out.
/// - tokens: {"input_ids", "labels"?}; labels unshifted, default input_ids. Needs no tokenizer.
///
/// - records: the directory of a record set, see records.h; only max_length and vocab_size are looked at.
///
/// With ChatGLM's tokenizer the chat template is that of glm_chat.h, every row has one <sop> behind a mask token, and
/// `text` is refused.
///
/// Rows are tokenised by at::get_num_threads() threads; they and their order do not depend on the number. With a
/// cache_dir, tokens that an earlier call left there are used instead; a file there that is damaged is named in a warning
/// and made anew, and a directory that cannot be written is warned about. Tokenizers without a fingerprint and sources
/// that are no regular files are not cached.
///
/// A bad row (not JSON, missing or empty field, wrong type, id outside the vocabulary, label that
/// is neither the id nor -100, longer than allowed, no target left after the cut) throws DataError
/// with file and line, or is left out and counted. A file that cannot be read throws IoError, a set
/// without rows DataError, options that make no sense ConfigError.
Dataset load_dataset(const Path& file, const DatasetOptions& options, const Tokenizer* tokenizer);

/// load_dataset with format adgen.
struct AdgenOptions {
  int64_t max_source = 64, max_target = 64;
};
Dataset adgen(const Path& file, const Tokenizer& tokenizer, const AdgenOptions& options = {});

/// Prompt and completion as tokens: <s> prompt, then completion </s>; ChatGLM: prompt [gMASK] <sop>, then completion <eop>. Used
/// by training, scoring and generation alike. Tokens that the tokenizer does not have are left out.
std::vector<int64_t> encode_prompt(const Tokenizer& tokenizer, std::string_view prompt);
std::vector<int64_t> encode_completion(const Tokenizer& tokenizer, std::string_view completion);

}  // namespace lora::data
