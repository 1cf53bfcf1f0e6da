// The table by which SentencePiece normalises text, as models carry it.
#pragma once

#include <string_view>

namespace lora::data {

/// Throws FormatError unless every look-up in the normalisation tables of a SentencePiece model stays inside them: older releases
/// of the library follow a damaged table to any address. `where` opens the message.
void check_charsmaps(std::string_view model, std::string_view where);

}  // namespace lora::data
