#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lora::data {

/// A row of a data file, one JSON object, for the functions of registered formats; valid while such a function runs. What is
/// not there, or is something else than asked for, is a DataError that names the key.
class Row {
 public:
  /// Whether there is a value other than null at `key`.
  bool has(std::string_view key) const;
  /// The text at `key`, which must hold more than white space.
  std::string text(std::string_view key) const;
  /// The text at `key`, which may be empty; `fallback` where has(key) is false.
  std::string text_or(std::string_view key, std::string_view fallback) const;
  int64_t integer(std::string_view key) const;
  double number(std::string_view key) const;
  std::vector<int64_t> integers(std::string_view key) const;
  std::vector<std::string> texts(std::string_view key) const;
  /// The objects of the list at `key`.
  std::vector<Row> rows(std::string_view key) const;
  /// The whole object as JSON text, for a parser of one's own.
  std::string json() const;

  struct Value;
  explicit Row(std::shared_ptr<const Value> value) : value_(std::move(value)) {}

 private:
  std::shared_ptr<const Value> value_;
};

}  // namespace lora::data
