// Fields of a model's config.json, and the same fields as the text of a run file gives them.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/check.h"
#include "formats/json.h"
#include "lora/core/dtype.h"

namespace lora::formats {

/// Reads typed fields of one JSON object, with messages that name the file and the field.
class Fields {
 public:
  Fields(const Json& object, std::string_view where) : object_(object), where_(where) {}

  bool has(const char* key) const { return object_.contains(key) && !object_.at(key).is_null(); }

  void integer(const char* key, int64_t& value) const {
    if (!has(key)) return;
    const Json& field = object_.at(key);
    check(is_integer(field), key, "an integer");
    value = field.get<int64_t>();
  }
  void number(const char* key, double& value) const {
    if (!has(key)) return;
    check(object_.at(key).is_number(), key, "a number");
    value = object_.at(key).get<double>();
  }
  void boolean(const char* key, bool& value) const {
    if (!has(key)) return;
    check(object_.at(key).is_boolean(), key, "true or false");
    value = object_.at(key).get<bool>();
  }
  void text(const char* key, std::string& value) const {
    if (!has(key)) return;
    check(object_.at(key).is_string(), key, "a string");
    value = object_.at(key).get<std::string>();
  }
  /// An integer or a list of integers.
  void integers(const char* key, std::vector<int64_t>& values) const {
    if (!has(key)) return;
    const Json& field = object_.at(key);
    const Json list = field.is_array() ? field : Json::array({field});
    values.clear();
    for (const Json& item : list) {
      check(is_integer(item), key, "an integer or a list of integers");
      values.push_back(item.get<int64_t>());
    }
  }
  const Json* object(const char* key) const {
    if (!has(key)) return nullptr;
    check(object_.at(key).is_object(), key, "an object");
    return &object_.at(key);
  }
  void check(bool holds, const char* key, const char* what) const {
    if (!holds) fail<FormatError>("[{}] {} must be {}; found {}", where_, key, what, object_.at(key).dump().substr(0, 80));
  }

 private:
  static bool is_integer(const Json& value) {
    return value.is_number_integer() && !(value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX);
  }

  const Json& object_;
  std::string_view where_;
};

/// torch_dtype, or dtype, which wins; `otherwise` when there is neither.
inline DType read_float_dtype(const Fields& fields, std::string_view where, DType otherwise) {
  std::string dtype;
  fields.text("torch_dtype", dtype);
  fields.text("dtype", dtype);
  return dtype.empty() ? otherwise : parse_float_dtype(dtype, fmt::format("{}: dtype", where));
}

/// The value of a run file's `model.key`. Each throws ConfigError.
inline int64_t integer_from(const std::string& key, const std::string& text) {
  size_t used = 0;
  try {
    const int64_t value = std::stoll(text, &used);
    if (used == text.size()) return value;
  } catch (const std::exception&) {
    used = 0;
  }
  fail<ConfigError>("[model.{}] the value must be an integer; found \"{}\"", key, text);
}

inline double number_from(const std::string& key, const std::string& text) {
  size_t used = 0;
  try {
    const double value = std::stod(text, &used);
    if (used == text.size() && std::isfinite(value)) return value;
  } catch (const std::exception&) {
    used = 0;
  }
  fail<ConfigError>("[model.{}] the value must be a number; found \"{}\"", key, text);
}

inline bool boolean_from(const std::string& key, const std::string& text) {
  if (text == "true") return true;
  if (text == "false") return false;
  fail<ConfigError>("[model.{}] the value must be true or false; found \"{}\"", key, text);
}

}  // namespace lora::formats
