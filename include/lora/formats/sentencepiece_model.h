#pragma once

#include <span>
#include <string>
#include <string_view>

namespace lora::formats {

/// The bytes of a SentencePiece model file with user-defined pieces behind its own: their ids are the next ones. A protocol
/// buffer's repeated entries may stand anywhere, so the model's own bytes stay as they are.
/// Source: sentencepiece_model.proto (ModelProto.pieces, SentencePiece.Type.USER_DEFINED).
std::string with_user_defined_pieces(std::string_view model, std::span<const std::string> pieces);

/// The same model without the space that it puts before every text. An entry that comes again later overrides.
std::string without_dummy_prefix(std::string_view model);

}  // namespace lora::formats
