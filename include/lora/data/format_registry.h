#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "lora/data/chat_template.h"
#include "lora/data/example.h"
#include "lora/data/row.h"
#include "lora/data/tokenizer.h"

namespace lora::data {

/// What a format makes of a row:
/// - TextPair: prompt and answer; the library encodes them as `completion` rows, the answer being what is learned;
/// - messages: a conversation, encoded as `chat` rows, in data.template;
/// - Example: tokens with labels (without labels every token is a target); `row` is not looked at.
using FormattedRow = std::variant<TextPair, std::vector<Message>, Example>;

/// One kind of rows: what programs need to know to read them by name.
struct DataFormat {
  std::string name;  ///< `data.format` of a run file
  /// To be changed whenever `read` makes something else of a row: tokens that are kept (data.cache_dir, `lora prepare`) are
  /// those of one name and version.
  std::string version;
  /// Called by several threads at once. DataError says what is wrong with a row; any other exception of the standard library
  /// counts as one. The tokenizer is null where the format needs none and there is none.
  std::function<FormattedRow(const Row& row, const Tokenizer* tokenizer)> read;
  bool has_answers = true;      ///< rows are questions with answers: `lora predict` and the metrics of `lora eval` work with them
  bool needs_tokenizer = true;  ///< false: `read` gives tokens; such rows have no answers to show
};

/// Makes a format known to this process; before any run file is read. Throws ConfigError for a name that is empty or taken, an
/// empty version, and where `read` is missing or answers lack a tokenizer.
void register_data_format(DataFormat format);

/// The registered format of that name; null: the library's own, or none.
const DataFormat* find_data_format(std::string_view name);

/// The library's own, then the registered ones in the order of their registration.
std::vector<std::string> data_format_names();
/// Those whose rows are questions with answers.
std::vector<std::string> answering_format_names();

/// Of any format. Throws ConfigError, naming the nearest, for one that is not known.
bool has_answers(std::string_view format);
bool needs_tokenizer(std::string_view format);

}  // namespace lora::data
