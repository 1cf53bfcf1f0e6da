#include "lora/train/callback_registry.h"

#include <algorithm>
#include <cctype>
#include <utility>

#include "core/check.h"
#include "lora/core/text.h"

namespace lora::train {
namespace {

using Entry = std::pair<std::string, MakeRunCallback>;

/// Of the process.
std::vector<Entry>& table() {
  static std::vector<Entry> callbacks;
  return callbacks;
}

const Entry* find(std::string_view name) {
  const auto found = std::ranges::find_if(table(), [&](const Entry& entry) { return entry.first == name; });
  return found == table().end() ? nullptr : &*found;
}

bool is_letter(char c) { return std::isalpha(static_cast<unsigned char>(c)) != 0; }

/// What YAML takes for text, quoted or not.
bool is_word(std::string_view name) {
  return !name.empty() && is_letter(name.front()) &&
         std::ranges::all_of(name, [](char c) { return is_letter(c) || (c >= '0' && c <= '9') || c == '-' || c == '_'; });
}

std::string nearest(std::string_view name) {
  const auto names = callback_names();
  return names.empty() ? "none" : fmt::format("{}", fmt::join(nearest_names(name, names, 3), ", "));
}

}  // namespace

void register_callback(std::string name, MakeRunCallback make) {
  require<ConfigError>(is_word(name),
                       "[train.register_callback] a callback must have a name of letters, digits, - and _ that begins with a "
                       "letter; found {:?}; choose another",
                       name);
  require<ConfigError>(make != nullptr, "[train.register_callback] a callback must have a factory; found {:?} without; give one",
                       name);
  require<ConfigError>(find(name) == nullptr,
                       "[train.register_callback] names of callbacks must be unique; found a second {:?}; choose "
                       "another",
                       name);
  table().emplace_back(std::move(name), std::move(make));
}

RunCallback make_callback(std::string_view name, const CallbackContext& run) {
  const Entry* const found = find(name);
  require<ConfigError>(found != nullptr, "[train.callbacks] the callback must be known to this program; found {:?}; it knows {}",
                       name, nearest(name));
  RunCallback callback = found->second(run);
  require<ConfigError>(callback != nullptr,
                       "[train.callbacks] the factory of {:?} must make a callback; it made none; correct the program", name);
  return callback;
}

std::vector<std::string> callback_names() {
  std::vector<std::string> names;
  for (const auto& [name, make] : table()) names.push_back(name);
  return names;
}

}  // namespace lora::train
