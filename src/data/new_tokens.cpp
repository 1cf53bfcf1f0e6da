#include "lora/data/new_tokens.h"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <set>
#include <string_view>

#include "core/check.h"
#include "lora/core/file.h"
#include "lora/formats/sentencepiece_model.h"

namespace lora::data {
namespace {

using sentencepiece::SentencePieceProcessor;

constexpr size_t kMaxTokenBytes = 256;
constexpr uint64_t kMaxFileBytes = 16u << 20, kMaxModelBytes = 256u << 20;
constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf", kSpaceMark = "\xe2\x96\x81",
                           kWideSpaces[] = {"\xc2\xa0", "\xe3\x80\x80"};

bool is_blank(std::string_view line) { return line.find_first_not_of(" \t\r") == std::string_view::npos; }

bool holds_space(std::string_view token) {
  const bool has_control =
      std::any_of(token.begin(), token.end(), [](char c) { return static_cast<unsigned char>(c) <= ' ' || c == '\x7f'; });
  const bool has_wide = std::any_of(std::begin(kWideSpaces), std::end(kWideSpaces),
                                    [&](std::string_view space) { return token.find(space) != std::string_view::npos; });
  return has_control || has_wide || token.find(kSpaceMark) != std::string_view::npos;
}

void check_token(std::string_view token, const std::string& place) {
  require<DataError>(is_utf8(token), "[{}] a token must be UTF-8; found other bytes at offset {}", place,
                     find_invalid_utf8(token));
  require<DataError>(token.size() <= kMaxTokenBytes, "[{}] a token must have at most {} bytes; found {}; one token per line",
                     place, kMaxTokenBytes, token.size());
  require<DataError>(!holds_space(token),
                     "[{}] a token must not hold spaces, control characters or U+2581, which tokenizers read in "
                     "different ways; found {:?}; leave them out",
                     place, token);
}

/// A processor cannot be copied nor moved.
struct Loaded : SentencePieceProcessor {
  Loaded(const std::string& model, const std::string& where) {
    const auto status = LoadFromSerializedProto(model);
    require<FormatError>(status.ok() && GetPieceSize() > 0, "[{}] must be a SentencePiece model; {}; give a tokenizer.model",
                         where, status.ToString());
  }
};

std::vector<int64_t> encode(const SentencePieceProcessor& processor, std::string_view text) {
  std::vector<int> ids;
  const auto status = processor.Encode({text.data(), text.size()}, &ids);
  require<DataError>(status.ok(), "[data.new_tokens] text must be encodable; {}", status.ToString());
  return {ids.begin(), ids.end()};
}

/// Every token has its one id, and the text of every old piece the ids that it had.
void check_extended(const ExtendedTokenizer& extended, const SentencePieceProcessor& before, const std::string& where) {
  const Loaded after(extended.model, where), bare(formats::without_dummy_prefix(extended.model), where);
  for (size_t i = 0; i < extended.tokens.size(); ++i) {
    const std::vector<int64_t> expected = {extended.first_id + static_cast<int64_t>(i)};
    require<FormatError>(
        encode(bare, extended.tokens[i]) == expected,
        "[{}] the extended tokenizer must give {:?} the id {}; it gives [{}]; is the token's text changed by the "
        "tokenizer's normalisation?",
        where, extended.tokens[i], expected.front(), fmt::join(encode(bare, extended.tokens[i]), ", "));
  }
  for (int id = 0; id < before.GetPieceSize(); ++id) {
    std::string text = before.IdToPiece(id);
    require<FormatError>(after.IdToPiece(id) == text, "[{}] old pieces must keep their ids; {} is {:?} after {:?}", where, id,
                         after.IdToPiece(id), text);
    const auto ids = encode(after, text);
    const bool holds_token = std::any_of(ids.begin(), ids.end(), [&](int64_t one) { return one >= extended.first_id; });
    require<FormatError>(holds_token || ids == encode(before, text), "[{}] old texts must keep their ids; {:?} has others", where,
                         text);
  }
}

}  // namespace

std::vector<std::string> read_new_tokens(const Path& file) {
  const std::string text = read_file(file, kMaxFileBytes);
  std::string_view rest = text;
  if (rest.starts_with(kByteOrderMark)) rest.remove_prefix(kByteOrderMark.size());
  std::vector<std::string> tokens;
  std::set<std::string_view> seen;
  for (int64_t line = 1; !rest.empty(); ++line) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    std::string_view token = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (is_blank(token)) continue;
    if (token.ends_with('\r')) token.remove_suffix(1);
    const std::string place = fmt::format("{}:{}", file.string(), line);
    check_token(token, place);
    require<DataError>(seen.insert(token).second, "[{}] a token must come once; found {:?} again; remove one of the lines", place,
                       token);
    tokens.emplace_back(token);
  }
  require<DataError>(!tokens.empty(), "[{}] the file must hold one token per line; found none", file.string());
  return tokens;
}

ExtendedTokenizer extend_tokenizer(const Path& model_file, const std::vector<std::string>& tokens) {
  const std::string where = model_file.string();
  const std::string model = read_file(model_file, kMaxModelBytes);
  const Loaded before(model, where), bare(formats::without_dummy_prefix(model), where);
  ExtendedTokenizer extended{.model = formats::with_user_defined_pieces(model, tokens),
                             .first_id = before.GetPieceSize(),
                             .tokens = tokens,
                             .old_pieces = {}};
  for (const auto& token : tokens) {
    const int id = before.PieceToId(token);
    require<DataError>(before.IdToPiece(id) != token,
                       "[{}] a new token must not be in the vocabulary; found {:?} there as {}; leave it out", where, token, id);
    extended.old_pieces.push_back(encode(bare, token));
  }
  check_extended(extended, before, where);
  return extended;
}

}  // namespace lora::data
