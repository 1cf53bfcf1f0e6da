#include "data/json_fields.h"

#include "core/check.h"
#include "data/strip.h"

namespace lora::data {

using formats::Json;

std::string optional_text(const Json& row, const std::string& key) {
  const auto found = row.find(key);
  if (found == row.end() || found->is_null()) return {};
  require<DataError>(found->is_string(), "\"{}\" must be a string; found {}", key, found->type_name());
  return found->get<std::string>();
}

std::string required_text(const Json& row, const std::string& key) {
  require<DataError>(row.contains(key), "\"{}\" must be there; it is missing", key);
  std::string text = optional_text(row, key);
  require<DataError>(!strip(text).empty(), "\"{}\" must hold text; it is empty", key);
  return text;
}

const Json& required_list(const Json& row, const std::string& key) {
  require<DataError>(row.contains(key), "\"{}\" must be there; it is missing", key);
  const Json& list = row.at(key);
  require<DataError>(list.is_array(), "\"{}\" must be a list; found {}", key, list.type_name());
  return list;
}

}  // namespace lora::data
