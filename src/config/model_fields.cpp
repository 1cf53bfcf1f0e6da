#include "config/model_fields.h"

#include <algorithm>
#include <string>

#include "config/scalar.h"

namespace lora::config {
namespace {

/// The entry of `name`, or where it belongs.
template <class Fields>
auto lower_bound_of(Fields& fields, std::string_view name) {
  return std::lower_bound(fields.begin(), fields.end(), name,
                          [](const auto& entry, std::string_view wanted) { return entry.first < wanted; });
}

bool parse(const std::string& text, int64_t& value) { return parse_integer(text, value) == NumberFault::kNone; }
bool parse(const std::string& text, double& value) { return parse_decimal(text, value) == NumberFault::kNone; }
bool parse(const std::string& text, bool& value) {
  value = text == "true";
  return value || text == "false";
}

bool parse(const std::string& text, std::string& value) {
  value = text;
  return true;
}

}  // namespace

template <class T>
std::optional<T> find_field(const ModelFields& fields, std::string_view name) {
  const auto entry = lower_bound_of(fields, name);
  T value{};
  if (entry == fields.end() || entry->first != name || !parse(entry->second, value)) return std::nullopt;
  return value;
}

template std::optional<int64_t> find_field(const ModelFields&, std::string_view);
template std::optional<double> find_field(const ModelFields&, std::string_view);
template std::optional<bool> find_field(const ModelFields&, std::string_view);
template std::optional<std::string> find_field(const ModelFields&, std::string_view);

void set_field(ModelFields& fields, std::string_view name, const std::optional<std::string>& text) {
  const auto entry = lower_bound_of(fields, name);
  const bool exists = entry != fields.end() && entry->first == name;
  if (text && exists) {
    entry->second = *text;
  } else if (text) {
    fields.emplace(entry, name, *text);
  } else if (exists) {
    fields.erase(entry);
  }
}

}  // namespace lora::config
