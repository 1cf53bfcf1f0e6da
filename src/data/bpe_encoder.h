#pragma once

#include <sentencepiece_processor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace lora::data {

/// The ids that SentencePiece gives, several times faster: pairs of symbols are looked up by number where the library
/// compares texts, and nothing is allocated per piece. For models of Llama's kind: byte-pair encoding of text as it is.
class BpeEncoder {
 public:
  /// Nothing when the model needs more than that: another algorithm, normalisation, removal of spaces, pieces out of use,
  /// symbols defined by users that hold spaces. `model` is what `processor` was loaded from.
  static std::optional<BpeEncoder> make(std::string_view model, const sentencepiece::SentencePieceProcessor& processor);

  /// Appends the ids of `text`. False, with `ids` as they were, when the text is not UTF-8 or enormous.
  bool encode(std::string_view text, std::vector<int64_t>& ids) const;

 private:
  /// What two neighbours become, by the numbers of their symbols; open addressing.
  class PairTable {
   public:
    explicit PairTable(size_t pairs);
    void insert(int32_t left, int32_t right, int32_t merged);
    /// -1: nothing.
    int32_t find(int32_t left, int32_t right) const { return entries_[slot_of(left, right)].merged; }

   private:
    struct Entry {
      uint64_t pair = UINT64_MAX;
      int32_t merged = -1;
    };
    static uint64_t pair_of(int32_t left, int32_t right) {
      return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
    }
    /// Where the pair is, or would be.
    size_t slot_of(int32_t left, int32_t right) const {
      const uint64_t pair = pair_of(left, right);
      const size_t mask = entries_.size() - 1;
      size_t slot = (pair * 0x9e3779b97f4a7c15u >> 20) & mask;
      while (entries_[slot].pair != pair && entries_[slot].pair != UINT64_MAX) slot = (slot + 1) & mask;
      return slot;
    }
    std::vector<Entry> entries_;
  };
  /// A piece that a user defined: found in text before any merging, and never merged.
  struct UserPiece {
    std::string text;
    int32_t id;
  };
  struct Scratch;

  BpeEncoder(const sentencepiece::SentencePieceProcessor& processor, bool adds_prefix, bool has_bytes);
  bool add_pieces(const sentencepiece::SentencePieceProcessor& processor, const std::vector<bool>& user_defined);
  void rank_pieces(const sentencepiece::SentencePieceProcessor& processor);
  int32_t& char_symbol(char32_t code);
  int32_t find_char(char32_t code) const;
  bool add_user_piece(std::string_view piece, int32_t id);
  const UserPiece* find_user_piece(std::string_view text) const;
  bool split(std::string_view text, Scratch& scratch) const;
  void merge(Scratch& scratch) const;
  void consider(int32_t left, int32_t right, Scratch& scratch) const;
  void append_ids(const Scratch& scratch, std::vector<int64_t>& ids) const;

  bool adds_prefix_, has_bytes_;
  int32_t num_pieces_, unknown_id_;
  std::vector<int32_t> low_chars_;                    ///< symbols of characters below U+10000; -1: none
  std::unordered_map<char32_t, int32_t> high_chars_;  ///< the others
  std::vector<uint32_t> ranks_;                       ///< by piece; lower ones are merged first
  std::array<int32_t, 256> byte_ids_ = {};
  std::array<bool, 256> begins_user_piece_ = {};                      ///< by first byte
  std::unordered_map<char32_t, std::vector<UserPiece>> user_pieces_;  ///< by first character, the longest first
  PairTable pairs_{0};
};

}  // namespace lora::data
