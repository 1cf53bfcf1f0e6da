#include "lora/data/format_registry.h"

#include <algorithm>
#include <array>
#include <deque>
#include <utility>

#include "core/check.h"
#include "lora/core/text.h"

namespace lora::data {
namespace {

/// What is known of every format.
struct Traits {
  std::string_view name;
  bool has_answers, needs_tokenizer;
};

constexpr std::array kOwnFormats = {
    Traits{"adgen", true, true},    Traits{"alpaca", true, true},     Traits{"chat", true, true},
    Traits{"sharegpt", true, true}, Traits{"completion", true, true}, Traits{"text", false, true},
    Traits{"tokens", false, false}, Traits{"records", false, false},
};

/// Of the process. Pointers to its entries stay good while it grows.
std::deque<DataFormat>& table() {
  static std::deque<DataFormat> formats;
  return formats;
}

Traits traits_of(std::string_view name) {
  const auto* own = std::ranges::find(kOwnFormats, name, &Traits::name);
  if (own != kOwnFormats.end()) return *own;
  const DataFormat* registered = find_data_format(name);
  const auto names = data_format_names();
  require<ConfigError>(registered != nullptr, "[data.format] must be one of {}; found {:?}; did you mean {}?",
                       fmt::join(names, ", "), name, nearest_names(name, names, 1).front());
  return {registered->name, registered->has_answers, registered->needs_tokenizer};
}

}  // namespace

void register_data_format(DataFormat format) {
  require<ConfigError>(
      !format.name.empty() && !format.version.empty() && format.read,
      "[data.register_data_format] a format must have a name, a version and a function that reads rows; found {:?} "
      "without",
      format.name);
  const auto names = data_format_names();
  require<ConfigError>(std::ranges::find(names, format.name) == names.end(),
                       "[data.register_data_format] names of formats must be unique; found a second {:?}; taken are {}",
                       format.name, fmt::join(names, ", "));
  require<ConfigError>(
      format.needs_tokenizer || !format.has_answers,
      "[data.register_data_format] answers are compared as text, for which a tokenizer is needed; found {:?} with answers and "
      "without; set has_answers to false",
      format.name);
  table().push_back(std::move(format));
}

const DataFormat* find_data_format(std::string_view name) {
  const auto found = std::ranges::find(table(), name, &DataFormat::name);
  return found == table().end() ? nullptr : &*found;
}

std::vector<std::string> data_format_names() {
  std::vector<std::string> names;
  for (const Traits& own : kOwnFormats) names.emplace_back(own.name);
  for (const DataFormat& registered : table()) names.push_back(registered.name);
  return names;
}

std::vector<std::string> answering_format_names() {
  std::vector<std::string> names = data_format_names();
  std::erase_if(names, [](const std::string& name) { return !has_answers(name); });
  return names;
}

bool has_answers(std::string_view format) { return traits_of(format).has_answers; }
bool needs_tokenizer(std::string_view format) { return traits_of(format).needs_tokenizer; }

}  // namespace lora::data
