#include "lora/data/row.h"

#include "core/check.h"
#include "data/json_fields.h"
#include "data/row_value.h"

namespace lora::data {
namespace {

using formats::Json;

const Json& value_at(const Json& object, const std::string& key) {
  const auto found = object.find(key);
  require<DataError>(found != object.end() && !found->is_null(), "\"{}\" must be there; it is missing", key);
  return *found;
}

int64_t integer_of(const Json& value, std::string_view key) {
  const bool fits = value.is_number_integer() && !(value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX);
  require<DataError>(fits, "\"{}\" must hold whole numbers; found {}", key, value.is_number() ? value.dump() : value.type_name());
  return value.get<int64_t>();
}

}  // namespace

bool Row::has(std::string_view key) const {
  const auto found = value_->object.find(key);
  return found != value_->object.end() && !found->is_null();
}

std::string Row::text(std::string_view key) const { return required_text(value_->object, std::string(key)); }

std::string Row::text_or(std::string_view key, std::string_view fallback) const {
  return has(key) ? optional_text(value_->object, std::string(key)) : std::string(fallback);
}

int64_t Row::integer(std::string_view key) const { return integer_of(value_at(value_->object, std::string(key)), key); }

double Row::number(std::string_view key) const {
  const Json& value = value_at(value_->object, std::string(key));
  require<DataError>(value.is_number(), "\"{}\" must be a number; found {}", key, value.type_name());
  return value.get<double>();
}

std::vector<int64_t> Row::integers(std::string_view key) const {
  std::vector<int64_t> numbers;
  for (const Json& value : required_list(value_->object, std::string(key))) numbers.push_back(integer_of(value, key));
  return numbers;
}

std::vector<std::string> Row::texts(std::string_view key) const {
  std::vector<std::string> texts;
  for (const Json& value : required_list(value_->object, std::string(key))) {
    require<DataError>(value.is_string(), "\"{}\" must hold strings; found {}", key, value.type_name());
    texts.push_back(value.get<std::string>());
  }
  return texts;
}

std::vector<Row> Row::rows(std::string_view key) const {
  std::vector<Row> rows;
  for (const Json& value : required_list(value_->object, std::string(key))) {
    require<DataError>(value.is_object(), "\"{}\" must hold objects; found {}", key, value.type_name());
    rows.push_back(row_of(value));
  }
  return rows;
}

std::string Row::json() const { return value_->object.dump(); }

}  // namespace lora::data
