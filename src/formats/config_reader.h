// Typed values out of a configuration's JSON object, for configs that other tools write.
#pragma once

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/check.h"
#include "formats/json.h"
#include "lora/formats/adapter_config.h"

namespace lora::formats {

constexpr int64_t kMaxConfigNumber = 1'000'000;
constexpr std::string_view kPeftVersion = "0.21.2";

/// Python's notion of true.
inline bool is_truthy(const OrderedJson& value) {
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_number()) return value.get<double>() != 0;
  if (value.is_string()) return !value.get_ref<const std::string&>().empty();
  return !value.empty();
}

/// Takes typed values out of the file's object and notes which keys it was asked for.
class ConfigReader {
 public:
  ConfigReader(const OrderedJson& root, std::string_view where) : root_(root), where_(where) {}

  std::string_view where() const { return where_; }

  /// The value of `key`; nothing when it is absent or null.
  const OrderedJson* find(const std::string& key) {
    asked_.push_back(key);
    const auto found = root_.find(key);
    return found == root_.end() || found->is_null() ? nullptr : &*found;
  }

  void read(const std::string& key, bool& out) {
    if (const auto* value = find(key)) {
      check(value->is_boolean(), key, "be true or false", *value);
      out = value->get<bool>();
    }
  }

  void read(const std::string& key, std::optional<std::string>& out) {
    if (const auto* value = find(key)) out = text(key, *value);
  }

  void read(const std::string& key, double& out) {
    if (const auto* value = find(key)) {
      check(value->is_number() && std::isfinite(value->get<double>()), key, "be a number", *value);
      out = value->get<double>();
    }
  }

  void read(const std::string& key, std::vector<std::string>& out) {
    if (const auto* value = find(key)) out = texts(key, *value);
  }

  void read(const std::string& key, std::optional<AdapterNames>& out) {
    const auto* value = find(key);
    if (value == nullptr) return;
    if (value->is_string()) {
      out = value->get<std::string>();
    } else {
      out = texts(key, *value);
    }
  }

  /// Maps of `lower` and more.
  void read(const std::string& key, std::vector<std::pair<std::string, int64_t>>& out, int64_t lower) {
    const auto* value = find(key);
    if (value == nullptr) return;
    check(value->is_object(), key, "be a map from expressions to whole numbers", *value);
    for (const auto& [expression, number] : value->items()) {
      out.emplace_back(expression, whole_number(key, number, lower));
    }
  }

  /// Maps of numbers of at most `most` in size.
  void read(const std::string& key, std::vector<std::pair<std::string, double>>& out, double most) {
    const auto* value = find(key);
    if (value == nullptr) return;
    check(value->is_object(), key, "be a map from expressions to numbers", *value);
    for (const auto& [expression, number] : value->items()) {
      const bool in_range = number.is_number() && std::abs(number.get<double>()) <= most;
      check(in_range, key, fmt::format("be numbers from {} to {}", -most, most), number);
      out.emplace_back(expression, number.get<double>());
    }
  }

  void read(const std::string& key, int64_t& out, int64_t lower) {
    if (const auto* value = find(key)) out = whole_number(key, *value, lower);
  }

  void read(const std::string& key, std::string& out) {
    if (const auto* value = find(key)) out = text(key, *value);
  }

  /// One of `choices`.
  void read(const std::string& key, std::string& out, std::initializer_list<std::string_view> choices) {
    const auto* value = find(key);
    if (value == nullptr) return;
    out = text(key, *value);
    check(std::ranges::find(choices, out) != choices.end(), key, fmt::format("be {}", fmt::join(choices, ", ")), *value);
  }

  int64_t whole_number(const std::string& key, const OrderedJson& value, int64_t lower, int64_t upper = kMaxConfigNumber) const {
    std::optional<int64_t> number;
    if (value.is_number_integer()) {
      const bool fits = !value.is_number_unsigned() || value.get<uint64_t>() <= INT64_MAX;
      if (fits) number = value.get<int64_t>();
    } else if (value.is_number_float()) {
      const auto real = value.get<double>();
      if (std::abs(real) < 0x1p53 && real == std::trunc(real)) number = static_cast<int64_t>(real);
    }
    const bool in_range = number && *number >= lower && *number <= upper;
    check(in_range, key, fmt::format("be a whole number from {} to {}", lower, upper), value);
    return *number;
  }

  /// A list of them from 0 on, such as ids of tokens.
  std::vector<int64_t> whole_numbers(const std::string& key, const OrderedJson& value) const {
    constexpr int64_t kMost = 1 << 24;
    check(value.is_array(), key, "be a list of whole numbers", value);
    std::vector<int64_t> numbers;
    for (const auto& item : value) numbers.push_back(whole_number(key, item, 0, kMost));
    return numbers;
  }

  std::string text(const std::string& key, const OrderedJson& value) const {
    check(value.is_string(), key, "be a text", value);
    return value.get<std::string>();
  }

  std::vector<std::string> texts(const std::string& key, const OrderedJson& value) const {
    check(value.is_array(), key, "be a list of texts", value);
    std::vector<std::string> items;
    for (const auto& item : value) items.push_back(text(key, item));
    return items;
  }

  void read_fraction(const std::string& key, double& out) {
    read(key, out);
    check(out >= 0 && out < 1, key, "be at least 0 and less than 1", out);
  }

  void check(bool holds, const std::string& key, std::string_view must, const OrderedJson& found) const {
    if (holds) return;
    fail<FormatError>("[{}] {} must {}; found {:?}; correct the file", where_, key, must, found.dump().substr(0, 120));
  }

  std::vector<std::string> keys_not_asked_for() const {
    std::vector<std::string> keys;
    for (const auto& [key, value] : root_.items()) {
      if (std::ranges::find(asked_, key) == asked_.end()) keys.push_back(key);
    }
    return keys;
  }

 private:
  const OrderedJson& root_;
  std::string_view where_;
  std::vector<std::string> asked_;
};

/// What every PEFT config says of where it comes from.
inline void read_origin(ConfigReader& reader, auto& config) {
  config.inference_mode = false;  // PEFT's default; its save writes true
  reader.read("inference_mode", config.inference_mode);
  reader.read("base_model_name_or_path", config.base_model_name_or_path);
  reader.read("task_type", config.task_type);
  reader.read("revision", config.revision);
}

/// What the writers share.
template <class T>
OrderedJson or_null(const std::optional<T>& value) {
  return value ? OrderedJson(*value) : OrderedJson();
}
inline OrderedJson or_null(const std::optional<AdapterNames>& names) {
  if (!names) return nullptr;
  return std::visit([](const auto& value) { return OrderedJson(value); }, *names);
}
inline OrderedJson or_null(const std::vector<std::string>& list) { return list.empty() ? OrderedJson() : OrderedJson(list); }
/// A number that other tools type as a whole one is written so.
inline OrderedJson whole_if_possible(double number) {
  const bool whole = std::abs(number) < 0x1p53 && number == std::trunc(number);
  return whole ? OrderedJson(static_cast<int64_t>(number)) : OrderedJson(number);
}
/// The same members in the order of their names.
inline OrderedJson sorted(const OrderedJson& json) {
  std::vector<std::string> names;
  for (const auto& [name, value] : json.items()) names.push_back(name);
  std::ranges::sort(names);
  OrderedJson result = OrderedJson::object();
  for (const auto& name : names) result[name] = json.at(name);
  return result;
}
/// Paths need not be UTF-8.
inline std::string text_of(const OrderedJson& json) {
  return json.dump(2, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
}

}  // namespace lora::formats
