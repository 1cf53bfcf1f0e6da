#include "lora/data/glm_tokenizer.h"

#include <algorithm>
#include <array>
#include <optional>
#include <system_error>
#include <utility>

#include "core/check.h"
#include "data/pieces.h"
#include "formats/json.h"
#include "lora/core/file.h"

namespace lora::data {
namespace {

using formats::Json;

constexpr std::string_view kLineEnd = "<n>", kTab = "<|tab|>";
constexpr size_t kMostBlanks = 80;
constexpr int64_t kImageTokensOfFirstLayout = 20000;
constexpr std::array<const char*, 8> kSpecialPieces = {"[MASK]", "[gMASK]", "[sMASK]", "<unused_0>",
                                                       "<sop>",  "<eop>",   "<ENC>",   "<dBLOCK>"};

std::string blank_piece(size_t spaces) { return fmt::format("<|blank_{}|>", spaces); }

/// Runs of spaces as blank pieces, longest first; a single space stays.
void append_spaces(std::string& text, size_t count) {
  for (; count > 1; count -= std::min(count, kMostBlanks)) text += blank_piece(std::min(count, kMostBlanks));
  if (count == 1) text += ' ';
}

std::string with_white_space_pieces(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const size_t end = std::min(text.find_first_not_of(' ', i), text.size());
    append_spaces(result, end - i);
    i = end;
    for (; i < text.size() && text[i] != ' '; ++i) {
      if (text[i] == '\n') {
        result += kLineEnd;
      } else if (text[i] == '\t') {
        result += kTab;
      } else {
        result += text[i];
      }
    }
  }
  return result;
}

/// The number n of a piece <|blank_n|> that `text` starts with, and its bytes; 0 for none.
std::pair<size_t, size_t> leading_blank(std::string_view text) {
  constexpr std::string_view kOpening = "<|blank_", kClosing = "|>";
  if (!text.starts_with(kOpening)) return {0, 0};
  const size_t end = text.find(kClosing, kOpening.size());
  if (end == std::string_view::npos || end > kOpening.size() + 2) return {0, 0};
  for (size_t spaces = 2; spaces <= kMostBlanks; ++spaces) {
    const std::string piece = blank_piece(spaces);
    if (text.starts_with(piece)) return {spaces, piece.size()};
  }
  return {0, 0};
}

std::string with_white_space(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  while (!text.empty()) {
    size_t taken = 1;
    if (text.starts_with(kLineEnd)) {
      result += '\n';
      taken = kLineEnd.size();
    } else if (text.starts_with(kTab)) {
      result += '\t';
      taken = kTab.size();
    } else if (const auto [spaces, bytes] = leading_blank(text); spaces > 0) {
      result.append(spaces, ' ');
      taken = bytes;
    } else {
      result += text.front();
    }
    text.remove_prefix(taken);
  }
  return result;
}

// A SentencePiece model is a protocol buffer, whose repeated fields grow and whose messages merge when bytes are appended.
namespace protobuf {

enum PieceType : char { kControl = 3, kUserDefined = 4, kByte = 6 };
constexpr char kLengthDelimited = 2, kFixed32 = 5;

constexpr char key(char field, char wire_type) { return static_cast<char>(field << 3 | wire_type); }

/// ModelProto.pieces, field 1: {piece = 1, score = 2 (0.0), type = 3}.
void append_piece(std::string& model, std::string_view text, PieceType type) {
  std::string piece = {key(1, kLengthDelimited), static_cast<char>(text.size())};
  piece += text;
  piece += {key(2, kFixed32), 0, 0, 0, 0, key(3, 0), static_cast<char>(type)};
  model += {key(1, kLengthDelimited), static_cast<char>(piece.size())};
  model += piece;
}

/// ModelProto.trainer_spec, field 2: {byte_fallback = 35 (true)}; the key of field 35 takes two bytes.
void append_byte_fallback(std::string& model) {
  constexpr unsigned kKey = 35u << 3;
  model += {key(2, kLengthDelimited), 3, static_cast<char>((kKey & 0x7f) | 0x80), static_cast<char>(kKey >> 7), 1};
}

}  // namespace protobuf

/// A file of text pieces with what ChatGLM's first tokenizer added to it when it was loaded.
std::string with_tail(std::string model) {
  for (const char* piece : kSpecialPieces) protobuf::append_piece(model, piece, protobuf::kControl);
  protobuf::append_piece(model, kTab, protobuf::kUserDefined);
  for (size_t n = 2; n <= kMostBlanks; ++n) protobuf::append_piece(model, blank_piece(n), protobuf::kUserDefined);
  for (int byte = 0; byte < 256; ++byte) {
    protobuf::append_piece(model, fmt::format("<0x{:02X}>", byte), protobuf::kByte);
  }
  protobuf::append_byte_fallback(model);
  return model;
}

struct GlmTokenizerConfig {
  std::string mask = "[MASK]", gmask = "[gMASK]", sop = "<sop>", eop = "<eop>", pad = "<pad>";
  std::optional<int64_t> num_image_tokens;
};

/// A token's text: a string, or the object of an added token.
void read_token(const Json& config, const char* key, std::string& token, const std::string& where) {
  const auto found = config.find(key);
  if (found == config.end() || found->is_null()) return;
  const Json& value = found->is_object() && found->contains("content") ? found->at("content") : *found;
  require<FormatError>(value.is_string(), "[{}] {} must be a text; found {}", where, key, value.type_name());
  token = value.get<std::string>();
}

void require_off(const Json& config, const char* key, const std::string& where) {
  const auto found = config.find(key);
  require<FormatError>(found == config.end() || found->is_null() || *found == false,
                       "[{}] {} must be false, as ChatGLM-6B has it; found {}", where, key,
                       found == config.end() ? "" : found->dump());
}

Path config_file_beside(const Path& model_file) { return model_file.parent_path() / "tokenizer_config.json"; }

std::optional<Json> read_config_json(const Path& file) {
  std::error_code error;
  if (!std::filesystem::exists(file, error)) return std::nullopt;
  Json config = formats::parse_json(read_file(file), file.string());
  require<FormatError>(config.is_object(), "[{}] must hold a JSON object; found {}", file.string(), config.type_name());
  return config;
}

GlmTokenizerConfig read_config(const Path& file) {
  GlmTokenizerConfig result;
  const auto config = read_config_json(file);
  if (!config) return result;
  const std::string where = file.string();
  read_token(*config, "mask_token", result.mask, where);
  read_token(*config, "gmask_token", result.gmask, where);
  read_token(*config, "bos_token", result.sop, where);
  read_token(*config, "eos_token", result.eop, where);
  read_token(*config, "pad_token", result.pad, where);
  require_off(*config, "remove_space", where);
  require_off(*config, "do_lower_case", where);
  const auto found = config->find("num_image_tokens");
  if (found == config->end() || found->is_null()) return result;
  constexpr int64_t kMost = 1 << 24;
  const bool fits = found->is_number_integer() && *found >= 0 && *found <= kMost;
  require<FormatError>(fits, "[{}] num_image_tokens must be a whole number from 0 to {}; found {}", where, kMost, found->dump());
  result.num_image_tokens = found->get<int64_t>();
  return result;
}

bool has_tail(const Pieces& pieces) { return pieces.find(kTab).has_value() && pieces.find("<0xFF>").has_value(); }

int64_t required_piece(const Pieces& pieces, std::string_view piece) {
  const auto id = pieces.find(piece);
  require<FormatError>(id.has_value(), "[{}] must be the tokenizer of ChatGLM-6B, with a piece {}; it has none; give its {}",
                       pieces.where(), piece, kGlmTokenizerFile);
  return *id;
}

class IceTextTokenizer : public GlmTokenizer {
 public:
  /// `model`: with its tail.
  IceTextTokenizer(const std::string& model, const std::string& where, const GlmTokenizerConfig& config, int64_t num_image_tokens)
      : pieces_(model, where), num_image_tokens_(num_image_tokens) {
    ids_ = {.mask = required_id(config.mask),
            .gmask = required_id(config.gmask),
            .sop = required_id(config.sop),
            .eop = required_id(config.eop)};
    pad_id_ = required_id(config.pad);
    const std::string shown = fmt::format("glm {} {} {} {} {} {} {}", digest(std::as_bytes(std::span(model))), num_image_tokens,
                                          ids_.mask, ids_.gmask, ids_.sop, ids_.eop, pad_id_);
    fingerprint_ = digest(std::as_bytes(std::span(shown)));
  }

  std::vector<int64_t> encode(std::string_view text) const override {
    std::vector<int64_t> ids = pieces_.encode(with_white_space_pieces(text));
    for (int64_t& id : ids) id += num_image_tokens_;
    return ids;
  }

  std::vector<int64_t> encode_without_prefix(std::string_view text) const override {
    // The space in front becomes a token before the line end: both are taken off again.
    constexpr std::ptrdiff_t kAdded = 2;
    std::vector<int64_t> ids = encode(fmt::format("\n{}", text));
    ids.erase(ids.begin(), ids.begin() + std::min(kAdded, std::ssize(ids)));
    return ids;
  }

  std::vector<int64_t> with_special_tokens(std::vector<int64_t> prompt) const override {
    prompt.insert(prompt.end(), {ids_.gmask, ids_.sop});
    return prompt;
  }

  std::vector<int64_t> with_special_tokens(std::vector<int64_t> prompt, std::span<const int64_t> answer) const override {
    prompt = with_special_tokens(std::move(prompt));
    prompt.insert(prompt.end(), answer.begin(), answer.end());
    prompt.push_back(ids_.eop);
    return prompt;
  }

  std::string decode(std::span<const int64_t> ids) const override {
    std::vector<int64_t> kept;
    for (const int64_t id : ids) {
      require<DataError>(id >= 0, "[{}] token ids must be at least 0; found {}", pieces_.where(), id);
      if (id != pad_id_ && id >= num_image_tokens_) kept.push_back(id - num_image_tokens_);
    }
    return with_white_space(pieces_.decode(kept));
  }

  std::string piece(int64_t id) const override {
    return id >= 0 && id < num_image_tokens_ ? fmt::format("<image_{}>", id) : pieces_.piece(id - num_image_tokens_);
  }

  int64_t vocab_size() const override { return pieces_.size() + num_image_tokens_; }
  int64_t bos_id() const override { return ids_.sop; }
  int64_t eos_id() const override { return ids_.eop; }
  int64_t pad_id() const override { return pad_id_; }
  std::optional<GlmIds> glm_ids() const override { return ids_; }
  std::string fingerprint() const override { return fingerprint_; }

 private:
  int64_t required_id(const std::string& piece) const { return required_piece(pieces_, piece) + num_image_tokens_; }

  Pieces pieces_;
  int64_t num_image_tokens_, pad_id_ = -1;
  GlmIds ids_;
  std::string fingerprint_;
};

}  // namespace

std::shared_ptr<const GlmTokenizer> load_glm_tokenizer(const Path& model_file) {
  const std::string where = model_file.string();
  std::string model = read_pieces_file(model_file);
  const GlmTokenizerConfig config = read_config(config_file_beside(model_file));
  const Pieces as_stored(model, where);
  for (const std::string_view piece : {std::string_view(config.pad), kLineEnd}) required_piece(as_stored, piece);
  const bool is_whole = has_tail(as_stored);
  if (!is_whole) model = with_tail(std::move(model));
  const int64_t image_tokens = config.num_image_tokens.value_or(is_whole ? 0 : kImageTokensOfFirstLayout);
  return std::make_shared<IceTextTokenizer>(model, where, config, image_tokens);
}

bool is_glm_tokenizer(const Path& model_file) {
  if (model_file.filename() == kGlmTokenizerFile) return true;
  const auto config = read_config_json(config_file_beside(model_file));
  return config && config->value("tokenizer_class", Json()) == "ChatGLMTokenizer";
}

std::vector<std::vector<int64_t>> pad_left(std::vector<std::vector<int64_t>> rows, int64_t pad_id) {
  size_t longest = 0;
  for (const auto& row : rows) longest = std::max(longest, row.size());
  for (auto& row : rows) row.insert(row.begin(), longest - row.size(), pad_id);
  return rows;
}

}  // namespace lora::data
