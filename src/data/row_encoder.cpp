#include "data/row_encoder.h"

#include <algorithm>
#include <exception>
#include <limits>
#include <new>
#include <utility>

#include "core/check.h"
#include "core/overloaded.h"
#include "data/json_fields.h"
#include "data/prompt_and_answer.h"
#include "data/row_value.h"
#include "data/strip.h"
#include "lora/data/glm_adgen.h"
#include "lora/data/glm_chat.h"
#include "lora/data/question.h"

namespace lora::data {
namespace {

using formats::Json;

/// A number of tokens over its limit is cut, or refused when cutting is off.
void require_cuttable(size_t size, int64_t limit, bool truncate_long, const char* what) {
  require<DataError>(truncate_long, "the {} must have at most {} tokens; it has {}", what, limit, size);
}

bool is_longer(size_t size, int64_t limit) { return static_cast<int64_t>(size) > limit; }

int32_t token_id(const Json& value) {
  require<DataError>(value.is_number_integer(), "token ids must be whole numbers; found {}", value.type_name());
  const bool in_range = value.is_number_unsigned() ? value.get<uint64_t>() <= std::numeric_limits<int32_t>::max()
                                                   : value.get<int64_t>() >= kIgnoreLabel;
  require<DataError>(in_range, "token ids must be at least 0; found {}", value.dump());
  return value.get<int32_t>();
}

std::vector<int32_t> token_ids(const Json& row, const std::string& key) {
  std::vector<int32_t> ids;
  for (const Json& value : required_list(row, key)) ids.push_back(token_id(value));
  return ids;
}

void check_labels(const Example& example) {
  require<DataError>(example.labels.size() == example.input_ids.size(),
                     "\"labels\" must be as long as \"input_ids\"; found {} and {}", example.labels.size(),
                     example.input_ids.size());
  for (size_t i = 0; i < example.labels.size(); ++i) {
    const int32_t label = example.labels[i];
    require<DataError>(label == example.input_ids[i] || label == kIgnoreLabel,
                       "labels[{}] must be input_ids[{}] = {} or {}; found {}", i, i, example.input_ids[i], kIgnoreLabel, label);
  }
}

/// The role names of other tools in those of the template.
std::string canonical_role(const std::string& role) {
  if (role == "human" || role == "user") return "user";
  if (role == "gpt" || role == "assistant") return "assistant";
  require<DataError>(role == "system", "roles must be system, user (human) or assistant (gpt); found {:?}", role);
  return role;
}

std::vector<Message> read_messages(const Json& list, const char* role_key, const char* text_key) {
  std::vector<Message> messages;
  for (const Json& item : list) {
    require<DataError>(item.is_object(), "messages must be objects; found {}", item.type_name());
    messages.push_back({.role = canonical_role(required_text(item, role_key)), .content = required_text(item, text_key)});
  }
  return messages;
}

/// "history": [[question, answer], ...], as files with several turns have it; nothing when there is no such field.
std::optional<std::vector<Exchange>> history_of(const Json& row) {
  const auto found = row.find("history");
  if (found == row.end() || found->is_null()) return std::nullopt;
  std::vector<Exchange> history;
  for (const Json& turn : required_list(row, "history")) {
    const bool is_pair = turn.is_array() && turn.size() == 2 && turn[0].is_string() && turn[1].is_string();
    require<DataError>(is_pair, "\"history\" must hold pairs of strings; found {}", turn.type_name());
    history.push_back({turn[0].get<std::string>(), turn[1].get<std::string>()});
  }
  return history;
}

int64_t count_answers(const Example& example) {
  int64_t count = 0;
  for (size_t i = 0; i < example.labels.size(); ++i) {
    count += example.labels[i] != kIgnoreLabel && (i == 0 || example.labels[i - 1] == kIgnoreLabel);
  }
  return count;
}

/// The `number`th question (from 1) that has an answer, with it; the last one where there are fewer.
TextPair exchange_at(const std::vector<Message>& messages, int64_t number) {
  TextPair found;
  for (size_t i = 1; i < messages.size() && number > 0; ++i) {
    if (messages[i].role != "assistant") continue;
    found = {messages[i - 1].content, messages[i].content};
    --number;
  }
  return found;
}

/// ChatGLM builds positions and mask from the place of <sop> and of the mask token before it.
void check_glm_row(const Example& example, const GlmIds& glm) {
  const auto& ids = example.input_ids;
  const auto count = std::count(ids.begin(), ids.end(), glm.sop);
  require<DataError>(count == 1, "a row of a ChatGLM must have one <sop>; found {}", count);
  const auto sop = std::find(ids.begin(), ids.end(), glm.sop);
  const bool is_masked = std::find(ids.begin(), sop, glm.gmask) != sop || std::find(ids.begin(), sop, glm.mask) != sop;
  require<DataError>(is_masked, "a row of a ChatGLM must have [gMASK] or [MASK] before its <sop>; found none");
}

/// An instruction and its input as one question.
std::string with_input(const formats::PromptTemplate& form, const std::string& instruction, const std::string& input) {
  using Kind = formats::TemplatePiece::Kind;
  std::string question;
  for (const auto& piece : formats::template_pieces(form.input, "template.input")) {
    question += piece.kind == Kind::kContent ? instruction : piece.kind == Kind::kInput ? input : piece.text;
  }
  return question;
}

void require_text(std::string_view what, const std::string& text) {
  require<DataError>(!strip(text).empty(), "the {} of a row must hold text; it is empty", what);
}

/// A row's form by a program's function, whose standard exceptions are about the row.
FormattedRow read_registered(const DataFormat& format, const Json& row, const Tokenizer* tokenizer) {
  try {
    return format.read(row_of(row), tokenizer);
  } catch (const Error&) {
    throw;
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& error) {
    fail<DataError>("format {} must be able to read the row; found {}", format.name, error.what());
  }
}

}  // namespace

void check_vocabulary(const std::vector<int32_t>& ids, int64_t vocab_size) {
  const int64_t limit = vocab_size > 0 ? vocab_size : std::numeric_limits<int64_t>::max();
  for (const int32_t id : ids) {
    require<DataError>(
        id >= 0 && id<limit, "token ids must be in [0, {}); found {}", vocab_size> 0 ? fmt::format("{}", vocab_size) : "2^31",
        id);
  }
}

RowEncoder::RowEncoder(const DatasetOptions& options, const Tokenizer* tokenizer) : options_(options), tokenizer_(tokenizer) {
  static const std::vector<std::pair<std::string, decltype(encode_)>> own = {
      {"adgen", &RowEncoder::adgen_row}, {"completion", &RowEncoder::completion_row}, {"alpaca", &RowEncoder::alpaca_row},
      {"chat", &RowEncoder::chat_row},   {"tokens", &RowEncoder::token_row},          {"sharegpt", &RowEncoder::chat_row},
  };
  const auto found = std::ranges::find(own, options.format, &std::pair<std::string, decltype(encode_)>::first);
  registered_ = find_data_format(options.format);
  require<ConfigError>(found != own.end() || registered_ != nullptr,
                       "[data.format] rows must be of a format such as {}; found {}", fmt::join(data_format_names(), ", "),
                       options.format);
  encode_ = found != own.end() ? found->second : &RowEncoder::registered_row;
  if (tokenizer == nullptr) return;
  glm_ = tokenizer->glm_ids();
  if (glm_ && options.format == "adgen") encode_ = &RowEncoder::glm_adgen_row;
  template_ = options.prompt_template ? *options.prompt_template : model_template(*tokenizer);
  formats::check_prompt_template(template_, "data");
}

EncodedRow RowEncoder::encode(const Json& row) const {
  require<DataError>(row.is_object(), "a row must be a JSON object; found {}", row.type_name());
  EncodedRow encoded = (this->*encode_)(row);
  check_vocabulary(encoded.example.input_ids, options_.vocab_size);
  if (glm_) check_glm_row(encoded.example, *glm_);
  require<DataError>(!glm_ || options_.answers_optional || encoded.example.num_targets() > 0,
                     "a row must have a target; found none");
  return encoded;
}

EncodedRow RowEncoder::adgen_row(const Json& row) const {
  TextPair text = text_pair(row, "content", "summary");
  std::vector<int64_t> prompt = encode_prompt(*tokenizer_, text.prompt);
  std::vector<int64_t> answer = encode_completion(*tokenizer_, text.response);
  bool truncated = false;
  if (is_longer(prompt.size(), options_.max_source_length)) {
    require_cuttable(prompt.size(), options_.max_source_length, options_.truncate_long, "prompt");
    prompt.resize(static_cast<size_t>(options_.max_source_length));
    truncated = true;
  }
  if (is_longer(answer.size(), options_.max_target_length)) {
    require_cuttable(answer.size(), options_.max_target_length, options_.truncate_long, "answer");
    // A cut answer keeps its end token: otherwise long rows would teach never to stop.
    const int64_t last = answer.back();
    answer.resize(static_cast<size_t>(options_.max_target_length));
    if (last == tokenizer_->eos_id()) answer.back() = last;
    truncated = true;
  }
  return {.example = join(prompt, answer), .truncated = truncated, .text = std::move(text)};
}

EncodedRow RowEncoder::glm_adgen_row(const Json& row) const {
  TextPair text = text_pair(row, "content", "summary");
  if (const auto history = history_of(row)) text.prompt = glm_rounds(*history, text.prompt);
  const GlmAdgenOptions limits{.max_source_length = options_.max_source_length,
                               .max_target_length = options_.max_target_length,
                               .train_on_sop = options_.train_on_sop,
                               .ignore_pad_in_loss = options_.ignore_pad_in_loss};
  GlmAdgenRow encoded = encode_glm_adgen(text, *tokenizer_, limits);
  require_cuttable(encoded.prompt_tokens, limits.prompt_limit(), options_.truncate_long || !encoded.prompt_is_cut(limits),
                   "prompt");
  require_cuttable(encoded.answer_tokens, limits.answer_limit(), options_.truncate_long || !encoded.answer_is_cut(limits),
                   "answer");
  const bool truncated = encoded.prompt_is_cut(limits) || encoded.answer_is_cut(limits);
  return {.example = std::move(encoded.example), .truncated = truncated, .text = std::move(text)};
}

EncodedRow RowEncoder::completion_row(const Json& row) const { return completion_of(text_pair(row, "prompt", "completion")); }

EncodedRow RowEncoder::completion_of(TextPair text) const {
  EncodedRow encoded{.example = join(encode_prompt(*tokenizer_, text.prompt), encode_completion(*tokenizer_, text.response)),
                     .truncated = false,
                     .text = std::move(text)};
  cut_at_end(encoded);
  return encoded;
}

EncodedRow RowEncoder::alpaca_row(const Json& row) const {
  TextPair text = text_pair(row, "instruction", "output");
  const std::string input = optional_text(row, "input");
  const bool has_input = !strip(input).empty();

  std::vector<Message> messages;
  std::string system = optional_text(row, "system");
  if (strip(system).empty()) system = has_input ? template_.default_system_with_input : "";
  if (!system.empty()) messages.push_back({.role = "system", .content = system});
  for (auto& [question, answer] : history_of(row).value_or(std::vector<Exchange>{})) {
    messages.push_back({.role = "user", .content = std::move(question)});
    messages.push_back({.role = "assistant", .content = std::move(answer)});
  }
  messages.push_back({.role = "user", .content = has_input ? with_input(template_, text.prompt, input) : text.prompt});
  messages.push_back({.role = "assistant", .content = text.response});
  return conversation_of(std::move(messages));
}

EncodedRow RowEncoder::chat_row(const Json& row) const {
  const bool has_messages = row.contains("messages");
  require<DataError>(has_messages || row.contains("conversations"),
                     "\"messages\" or \"conversations\" must be there; both are missing");
  std::vector<Message> messages = has_messages ? read_messages(required_list(row, "messages"), "role", "content")
                                               : read_messages(required_list(row, "conversations"), "from", "value");
  const std::string system = optional_text(row, "system");
  if (!strip(system).empty()) {
    messages.insert(messages.begin(), {.role = "system", .content = system});
  }
  return conversation_of(std::move(messages));
}

EncodedRow RowEncoder::token_row(const Json& row) const {
  Example example;
  example.input_ids = token_ids(row, "input_ids");
  const auto labels = row.find("labels");
  if (labels != row.end() && !labels->is_null()) {
    example.labels = token_ids(row, "labels");
    require<DataError>(!example.labels.empty(), "\"labels\" must be as long as \"input_ids\"; it is empty");
  }
  return tokens_of(std::move(example));
}

/// What the program's function makes of a row.
EncodedRow RowEncoder::registered_row(const Json& row) const {
  const FormattedRow formatted = read_registered(*registered_, row, tokenizer_);
  if (!std::holds_alternative<Example>(formatted)) {
    require<ConfigError>(tokenizer_ != nullptr,
                         "[data.format] texts of format {} need a tokenizer; found none; register it with "
                         "needs_tokenizer, or let it give tokens",
                         registered_->name);
  }
  return std::visit(Overloaded{[&](const TextPair& text) {
                                 require_text("prompt", text.prompt);
                                 if (!options_.answers_optional) require_text("answer", text.response);
                                 return completion_of(text);
                               },
                               [&](const std::vector<Message>& messages) { return conversation_of(messages); },
                               [&](const Example& example) {
                                 EncodedRow encoded = tokens_of(example);
                                 require<DataError>(encoded.example.num_targets() > 0, "a row must have a target; found none");
                                 if (registered_->has_answers) encoded.text = text_of(encoded.example, *tokenizer_);
                                 return encoded;
                               }},
                    formatted);
}

/// Without labels every token is a target.
EncodedRow RowEncoder::tokens_of(Example given) const {
  EncodedRow encoded{.example = std::move(given), .truncated = false, .text = {}};
  Example& example = encoded.example;
  require<DataError>(!example.input_ids.empty(), "\"input_ids\" must hold ids; it is empty");
  if (example.labels.empty()) example.labels = example.input_ids;
  check_labels(example);
  if (is_longer(example.input_ids.size(), options_.max_length)) {
    require_cuttable(example.input_ids.size(), options_.max_length, options_.truncate_long, "row");
    check_vocabulary(example.input_ids, options_.vocab_size);  // of the part that is cut, too
    example.input_ids.resize(static_cast<size_t>(options_.max_length));
    example.labels.resize(static_cast<size_t>(options_.max_length));
    encoded.truncated = true;
  }
  return encoded;
}

/// The text of a conversation is the last exchange whose answer is in the row, or begins there.
EncodedRow RowEncoder::conversation_of(std::vector<Message> messages) const {
  const bool is_open = !messages.empty() && messages.back().role == "user";
  if (options_.answers_optional && is_open) messages.push_back({.role = "assistant", .content = ""});
  EncodedRow encoded{.example = encode_chat(messages, *tokenizer_, template_), .truncated = false, .text = {}};
  require<DataError>(options_.answers_optional || encoded.example.num_targets() > 0,
                     "a conversation must have an answer of the assistant; found none");
  cut_at_end(encoded);
  const bool has_one_answer = glm_ || template_.rounds;
  const int64_t last = encoded.truncated && !has_one_answer ? count_answers(encoded.example) : std::ssize(messages);
  encoded.text = exchange_at(messages, last);
  return encoded;
}

/// The response is empty where the row has none and needs none.
TextPair RowEncoder::text_pair(const Json& row, const char* prompt, const char* response) const {
  const std::string response_column = options_.response_column.value_or(response);
  TextPair pair{.prompt = required_text(row, options_.prompt_column.value_or(prompt)), .response = {}};
  if (options_.answers_optional) {
    pair.response = optional_text(row, response_column);
    if (strip(pair.response).empty()) pair.response.clear();
  } else {
    pair.response = required_text(row, response_column);
  }
  return pair;
}

void RowEncoder::cut_at_end(EncodedRow& row) const {
  Example& example = row.example;
  const size_t size = example.input_ids.size();
  if (!is_longer(size, options_.max_length)) return;
  require_cuttable(size, options_.max_length, options_.truncate_long, "row");
  example.input_ids.resize(static_cast<size_t>(options_.max_length));
  example.labels.resize(static_cast<size_t>(options_.max_length));
  row.truncated = true;
  const bool has_target = example.num_targets() > 0;
  require<DataError>(has_target || !options_.answers_optional, "a question must have less than {} tokens; this one has more",
                     options_.max_length);
  require<DataError>(has_target, "the first {} tokens of a row must hold a target; all of its answer is after them",
                     options_.max_length);
}

}  // namespace lora::data
