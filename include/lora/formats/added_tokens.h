#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace lora::formats {

/// Tokens that a vocabulary gains: texts[i] has the id first_id + i.
struct AddedTokens {
  int64_t first_id = 0;
  std::vector<std::string> texts = {};
};

/// What transformers keeps beside tokenizer.model, with the tokens added: the text of tokenizer.json, of added_tokens.json, and
/// of tokenizer_config.json (whose added_tokens_decoder is optional). A token that is there already must have its id there.
/// Throws FormatError for what is no such file, and where another token has one of these ids; `where` opens the message.
std::string add_to_tokenizer_json(std::string_view json, const AddedTokens& tokens, std::string_view where);
std::string add_to_added_tokens_json(std::string_view json, const AddedTokens& tokens, std::string_view where);
std::string add_to_tokenizer_config(std::string_view json, const AddedTokens& tokens, std::string_view where);

}  // namespace lora::formats
