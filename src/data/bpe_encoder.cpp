#include "data/bpe_encoder.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <map>
#include <string>

#include "core/check.h"
#include "data/message_reader.h"

namespace lora::data {
namespace {

constexpr char32_t kSpace = 0x2581;  // how spaces are written inside pieces
constexpr size_t kMaxBytes = 1u << 30;
constexpr uint64_t kBytePairEncoding = 2;          // TrainerSpec.ModelType
constexpr uint64_t kUserDefined = 4, kUnused = 5;  // SentencePiece.Type

/// What of sentencepiece_model.proto decides how text is encoded; the numbers are those of its fields.
struct ModelSettings {
  uint64_t model_type = 1;
  bool space_is_suffix = false, has_bytes = false;
  bool adds_prefix = true, removes_spaces = true, escapes_spaces = true, normalizes = false;
  bool has_unused_pieces = false;
  std::vector<bool> user_defined;  ///< by piece

  explicit ModelSettings(std::string_view model) {
    for (MessageReader fields(model); fields.next();) {
      if (fields.field() == 1) read_piece(fields.bytes());
      if (fields.field() == 2) read_trainer(fields.bytes());
      if (fields.field() == 3) read_normalizer(fields.bytes());
    }
  }

  bool are_plain() const {
    return model_type == kBytePairEncoding && !space_is_suffix && !removes_spaces && escapes_spaces && !normalizes &&
           !has_unused_pieces;
  }

 private:
  void read_piece(std::string_view piece) {
    user_defined.push_back(false);
    for (MessageReader fields(piece); fields.next();) {
      if (fields.field() != 3) continue;
      user_defined.back() = fields.number() == kUserDefined;
      if (fields.number() == kUnused) has_unused_pieces = true;
    }
  }

  void read_trainer(std::string_view spec) {
    for (MessageReader fields(spec); fields.next();) {
      if (fields.field() == 3) model_type = fields.number();
      if (fields.field() == 24) space_is_suffix = fields.number() != 0;
      if (fields.field() == 35) has_bytes = fields.number() != 0;
    }
  }

  void read_normalizer(std::string_view spec) {
    for (MessageReader fields(spec); fields.next();) {
      if (fields.field() == 2) normalizes = !fields.bytes().empty();
      if (fields.field() == 3) adds_prefix = fields.number() != 0;
      if (fields.field() == 4) removes_spaces = fields.number() != 0;
      if (fields.field() == 5) escapes_spaces = fields.number() != 0;
    }
  }
};

/// Takes a character off the front of well-formed UTF-8.
char32_t take_char(std::string_view& text) {
  const auto byte = [&](size_t i) { return static_cast<char32_t>(static_cast<unsigned char>(text[i])); };
  const char32_t first = byte(0);
  const size_t length = first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
  char32_t code = first;
  if (length == 2) code = (first & 0x1f) << 6 | (byte(1) & 0x3f);
  if (length == 3) code = (first & 0x0f) << 12 | (byte(1) & 0x3f) << 6 | (byte(2) & 0x3f);
  if (length == 4) {
    code = (first & 0x07) << 18 | (byte(1) & 0x3f) << 12 | (byte(2) & 0x3f) << 6 | (byte(3) & 0x3f);
  }
  text.remove_prefix(length);
  return code;
}

/// Calls `use` with every byte of a character's UTF-8 form.
template <class Use>
void for_each_byte(char32_t code, const Use& use) {
  if (code < 0x80) return use(code);
  if (code < 0x800) {
    use(0xc0 | code >> 6);
  } else {
    if (code < 0x10000) {
      use(0xe0 | code >> 12);
    } else {
      use(0xf0 | code >> 18);
      use(0x80 | (code >> 12 & 0x3f));
    }
    use(0x80 | (code >> 6 & 0x3f));
  }
  use(0x80 | (code & 0x3f));
}

size_t size_of_first_char(std::string_view text) {
  std::string_view rest = text;
  take_char(rest);
  return text.size() - rest.size();
}

}  // namespace

/// A text on its way to ids; used again for the next one.
struct BpeEncoder::Scratch {
  /// A piece, or a character that is none (num_pieces_ and above, or -1); -2: merged into its left neighbour.
  struct Symbol {
    int32_t id, previous, next;
    char32_t code;
  };
  /// Two neighbours that may be merged, if they are still there when their turn comes.
  struct Candidate {
    uint64_t order;  ///< rank, then place from the left
    int32_t left, right, left_id, right_id, merged;
    bool operator>(const Candidate& other) const { return order > other.order; }
  };
  std::vector<Symbol> symbols;
  std::vector<Candidate> candidates;  ///< a heap, the first to be merged in front
};

BpeEncoder::PairTable::PairTable(size_t pairs) : entries_(std::bit_ceil(2 * pairs + 1)) {}

void BpeEncoder::PairTable::insert(int32_t left, int32_t right, int32_t merged) {
  entries_[slot_of(left, right)] = {pair_of(left, right), merged};
}

std::optional<BpeEncoder> BpeEncoder::make(std::string_view model, const sentencepiece::SentencePieceProcessor& processor) {
  const ModelSettings settings(model);
  if (!settings.are_plain()) return std::nullopt;
  BpeEncoder encoder(processor, settings.adds_prefix, settings.has_bytes);
  if (!encoder.add_pieces(processor, settings.user_defined)) return std::nullopt;
  encoder.rank_pieces(processor);
  return encoder;
}

BpeEncoder::BpeEncoder(const sentencepiece::SentencePieceProcessor& processor, bool adds_prefix, bool has_bytes)
    : adds_prefix_(adds_prefix),
      has_bytes_(has_bytes),
      num_pieces_(processor.GetPieceSize()),
      unknown_id_(processor.unk_id()),
      low_chars_(0x10000, -1) {
  for (size_t byte = 0; has_bytes && byte < byte_ids_.size(); ++byte) {
    byte_ids_[byte] = processor.PieceToId(fmt::format("<0x{:02X}>", byte));
  }
}

int32_t& BpeEncoder::char_symbol(char32_t code) {
  return code < low_chars_.size() ? low_chars_[code] : high_chars_.try_emplace(code, -1).first->second;
}

int32_t BpeEncoder::find_char(char32_t code) const {
  if (code < low_chars_.size()) return low_chars_[code];
  const auto found = high_chars_.find(code);
  return found == high_chars_.end() ? -1 : found->second;
}

/// False for one with spaces: where the library finds those depends on how they were written in the text.
bool BpeEncoder::add_user_piece(std::string_view piece, int32_t id) {
  for (std::string_view rest = piece; !rest.empty();) {
    const char32_t code = take_char(rest);
    if (code == kSpace || code <= U' ') return false;
  }
  begins_user_piece_[static_cast<unsigned char>(piece.front())] = true;
  std::string_view rest = piece;
  auto& pieces = user_pieces_[take_char(rest)];
  const auto shorter = [&](const UserPiece& other) { return other.text.size() < piece.size(); };
  pieces.insert(std::find_if(pieces.begin(), pieces.end(), shorter), {std::string(piece), id});
  return true;
}

/// The longest that `text` begins with; null: none.
const BpeEncoder::UserPiece* BpeEncoder::find_user_piece(std::string_view text) const {
  if (!begins_user_piece_[static_cast<unsigned char>(text.front())]) return nullptr;
  std::string_view rest = text;
  const auto pieces = user_pieces_.find(take_char(rest));
  if (pieces == user_pieces_.end()) return nullptr;
  const auto found = std::find_if(pieces->second.begin(), pieces->second.end(),
                                  [&](const UserPiece& piece) { return text.starts_with(piece.text); });
  return found == pieces->second.end() ? nullptr : &*found;
}

/// False for a model that this encoder does not stand in for.
bool BpeEncoder::add_pieces(const sentencepiece::SentencePieceProcessor& processor, const std::vector<bool>& user_defined) {
  if (user_defined.size() != static_cast<size_t>(num_pieces_)) return false;
  std::unordered_map<std::string_view, int32_t> symbols;  // texts of all symbols
  for (int32_t id = 0; id < num_pieces_; ++id) {
    const std::string_view piece = processor.IdToPiece(id);
    if (piece.empty() || !is_utf8(piece)) return false;
    const bool is_one_char = size_of_first_char(piece) == piece.size();
    if (user_defined[static_cast<size_t>(id)]) {
      if (!add_user_piece(piece, id)) return false;
      continue;
    }
    if (processor.IsControl(id) || processor.IsUnknown(id) || processor.IsByte(id)) {
      if (is_one_char) return false;
      continue;
    }
    symbols.emplace(piece, id);
    std::string_view text = piece;
    if (is_one_char) char_symbol(take_char(text)) = id;
  }
  // Characters that are no pieces themselves but part of some.
  const std::vector<std::pair<std::string_view, int32_t>> pieces(symbols.begin(), symbols.end());
  int32_t next_symbol = num_pieces_;
  for (const auto& [piece, id] : pieces) {
    for (std::string_view rest = piece; !rest.empty();) {
      const std::string_view one = rest.substr(0, size_of_first_char(rest));
      int32_t& symbol = char_symbol(take_char(rest));
      if (symbol < 0) symbols.emplace(one, symbol = next_symbol++);
    }
  }
  std::vector<std::array<int32_t, 3>> pairs;
  for (const auto& [piece, id] : pieces) {
    for (size_t cut = size_of_first_char(piece); cut < piece.size(); cut += size_of_first_char(piece.substr(cut))) {
      const auto left = symbols.find(piece.substr(0, cut)), right = symbols.find(piece.substr(cut));
      if (left == symbols.end() || right == symbols.end()) continue;
      pairs.push_back({left->second, right->second, id});
    }
  }
  pairs_ = PairTable(pairs.size());
  for (const auto& [left, right, merged] : pairs) pairs_.insert(left, right, merged);
  return true;
}

void BpeEncoder::rank_pieces(const sentencepiece::SentencePieceProcessor& processor) {
  std::map<float, uint32_t, std::greater<>> ranks;  // pieces of the same score share one
  for (int32_t id = 0; id < num_pieces_; ++id) ranks.emplace(processor.GetScore(id), 0);
  uint32_t next = 0;
  for (auto& [score, rank] : ranks) rank = next++;
  for (int32_t id = 0; id < num_pieces_; ++id) ranks_.push_back(ranks.at(processor.GetScore(id)));
}

bool BpeEncoder::encode(std::string_view text, std::vector<int64_t>& ids) const {
  thread_local Scratch scratch;
  if (text.empty()) return true;
  if (text.size() > kMaxBytes || !split(text, scratch)) return false;
  merge(scratch);
  append_ids(scratch, ids);
  return true;
}

/// Characters as symbols. False when the text is not UTF-8.
bool BpeEncoder::split(std::string_view text, Scratch& scratch) const {
  if (!is_utf8(text)) return false;
  auto& symbols = scratch.symbols;
  symbols.clear();
  const auto append = [&](char32_t code) {
    const auto place = static_cast<int32_t>(symbols.size());
    symbols.push_back({find_char(code), place - 1, place + 1, code});
  };
  if (adds_prefix_) append(kSpace);
  while (!text.empty()) {
    if (const UserPiece* piece = find_user_piece(text)) {
      const auto place = static_cast<int32_t>(symbols.size());
      symbols.push_back({piece->id, place - 1, place + 1, 0});  // no pair holds its id
      text.remove_prefix(piece->text.size());
      continue;
    }
    const char32_t code = take_char(text);
    append(code == U' ' ? kSpace : code);
  }
  symbols.back().next = -1;
  return true;
}

/// Puts the pair on the heap when it can be merged.
void BpeEncoder::consider(int32_t left, int32_t right, Scratch& scratch) const {
  if (left < 0 || right < 0) return;
  const int32_t left_id = scratch.symbols[static_cast<size_t>(left)].id;
  const int32_t right_id = scratch.symbols[static_cast<size_t>(right)].id;
  if (left_id < 0 || right_id < 0) return;
  const int32_t merged = pairs_.find(left_id, right_id);
  if (merged < 0) return;
  const uint64_t order = static_cast<uint64_t>(ranks_[static_cast<size_t>(merged)]) << 32 | static_cast<uint32_t>(left);
  scratch.candidates.push_back({order, left, right, left_id, right_id, merged});
}

/// Merges the best pair, the leftmost of equals, until there is none.
void BpeEncoder::merge(Scratch& scratch) const {
  constexpr int32_t kGone = -2;
  auto& [symbols, candidates] = scratch;
  candidates.clear();
  for (size_t i = 1; i < symbols.size(); ++i) {
    consider(static_cast<int32_t>(i) - 1, static_cast<int32_t>(i), scratch);
  }
  std::make_heap(candidates.begin(), candidates.end(), std::greater<>());
  const auto consider_new = [&](int32_t left, int32_t right) {
    const size_t before = candidates.size();
    consider(left, right, scratch);
    if (candidates.size() > before) std::push_heap(candidates.begin(), candidates.end(), std::greater<>());
  };
  while (!candidates.empty()) {
    std::pop_heap(candidates.begin(), candidates.end(), std::greater<>());
    const Scratch::Candidate best = candidates.back();
    candidates.pop_back();
    auto& left = symbols[static_cast<size_t>(best.left)];
    auto& right = symbols[static_cast<size_t>(best.right)];
    if (left.id != best.left_id || right.id != best.right_id || left.next != best.right) continue;
    left.id = best.merged;
    right.id = kGone;
    left.next = right.next;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = best.left;
    consider_new(left.previous, best.left);
    consider_new(best.left, left.next);
  }
}

void BpeEncoder::append_ids(const Scratch& scratch, std::vector<int64_t>& ids) const {
  bool after_unknown = false;
  for (int32_t i = 0; i >= 0; i = scratch.symbols[static_cast<size_t>(i)].next) {
    const auto& symbol = scratch.symbols[static_cast<size_t>(i)];
    const bool is_unknown = symbol.id < 0 || symbol.id >= num_pieces_;
    if (!is_unknown) {
      ids.push_back(symbol.id);
    } else if (has_bytes_) {
      for_each_byte(symbol.code, [&](char32_t byte) { ids.push_back(byte_ids_[byte]); });
    } else if (!after_unknown) {
      ids.push_back(unknown_id_);  // one for a run of them
    }
    after_unknown = is_unknown;
  }
}

}  // namespace lora::data
