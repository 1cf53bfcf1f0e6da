#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "lora/data/tokenizer.h"

namespace lora::data {

constexpr size_t kTextSegmentBytes = 64u << 10;

/// Ids of a long text, equal to tokenizer.encode(text) but by several threads and in bounded memory (SentencePiece needs
/// about 150 bytes for each byte that it encodes at once).
///
/// The text is cut after about `segment_bytes`, and only where cutting does not show: before a
/// space, which the next segment then leaves out because the tokenizer puts one in front of every
/// text, or before a line end, where that leading space token is taken off again. Each cut is tried
/// on a window around it first; where it would change the ids another place is looked for. Text
/// without such a place is encoded whole.
std::vector<int64_t> encode_long_text(const Tokenizer& tokenizer, std::string_view text,
                                      size_t segment_bytes = kTextSegmentBytes);

}  // namespace lora::data
