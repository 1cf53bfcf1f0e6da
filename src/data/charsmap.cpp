#include "data/charsmap.h"

#include <cstdint>
#include <cstring>
#include <vector>

#include "core/check.h"
#include "data/message_reader.h"

// precompiled_charsmap: the size of a trie in bytes, the trie, and texts that end with NUL, at which the trie's values point.
// The trie is a double array (Darts): of a unit bits 0 to 7 are a label, bit 8 says that a value follows, bits 10 and more are an
// offset, in units of 256 where bit 9 is set; bit 31 marks a value. From the node at i a look-up goes to i ^ offset, and from
// there over every byte b to i ^ offset ^ b.
namespace lora::data {
namespace {

constexpr uint32_t kValue = 1u << 31, kHasValue = 1u << 8;
constexpr size_t kUnitsPerBlock = 256;

uint32_t offset_of(uint32_t unit) { return unit >> 10 << ((unit & 1u << 9) >> 6); }

void check_charsmap(std::string_view table, std::string_view where) {
  if (table.empty()) return;
  const auto must = [&](bool holds, std::string_view what) {
    require<FormatError>(holds, "[{}] must be a SentencePiece model; its normalisation table {}; the file is damaged", where,
                         what);
  };
  uint32_t trie_bytes = 0;
  must(table.size() > sizeof(trie_bytes), "is cut off");
  std::memcpy(&trie_bytes, table.data(), sizeof(trie_bytes));
  table.remove_prefix(sizeof(trie_bytes));
  must(trie_bytes > 0 && trie_bytes % (kUnitsPerBlock * sizeof(uint32_t)) == 0 && trie_bytes < table.size(),
       "says that it has another size");
  const std::string_view texts = table.substr(trie_bytes);
  must(texts.back() == '\0', "has a text without an end");
  std::vector<uint32_t> units(trie_bytes / sizeof(uint32_t));
  std::memcpy(units.data(), table.data(), trie_bytes);
  for (size_t i = 0; i < units.size(); ++i) {
    if ((units[i] & kValue) != 0) continue;
    // A block of 256 units is whole, so that every byte leads to a unit of the same block.
    const size_t next = i ^ offset_of(units[i]);
    must(next < units.size(), "leads out of itself");
    must((units[i] & kHasValue) == 0 || (units[next] & ~kValue) < texts.size(), "leads to a text that it does not have");
  }
}

}  // namespace

void check_charsmaps(std::string_view model, std::string_view where) {
  constexpr uint64_t kNormalizerSpec = 3, kDenormalizerSpec = 5, kPrecompiledCharsmap = 2;
  const auto require_whole = [&](const MessageReader& fields) {
    require<FormatError>(fields.is_whole(), "[{}] must be a SentencePiece model; its fields are cut off or of another format",
                         where);
  };
  MessageReader fields(model);
  while (fields.next()) {
    if (fields.field() != kNormalizerSpec && fields.field() != kDenormalizerSpec) continue;
    MessageReader spec(fields.bytes());
    while (spec.next()) {
      if (spec.field() == kPrecompiledCharsmap) check_charsmap(spec.bytes(), where);
    }
    require_whole(spec);
  }
  require_whole(fields);
}

}  // namespace lora::data
