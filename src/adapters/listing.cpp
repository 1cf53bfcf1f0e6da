#include "adapters/listing.h"

#include <algorithm>
#include <cstddef>

#include "core/check.h"
#include "lora/core/text.h"

namespace lora::adapters {
namespace {

constexpr size_t kShownNames = 5, kShownCharacters = 150;

}  // namespace

std::string quote_name(std::string_view name) {
  // A cut may fall inside a character.
  const std::string shown = to_utf8(name.substr(0, kShownCharacters));
  return fmt::format("{:?}{}", shown, name.size() > kShownCharacters ? "..." : "");
}

std::string listed(const std::vector<std::string>& texts) {
  const size_t shown = std::min(texts.size(), kShownNames);
  const auto end = texts.begin() + static_cast<std::ptrdiff_t>(shown);
  return fmt::format("{}{}", fmt::join(texts.begin(), end, ", "), shown < texts.size() ? ", ..." : "");
}

std::string listed_names(const std::vector<std::string>& names) {
  std::vector<std::string> shown;
  for (const auto& name : names) {
    if (shown.size() <= kShownNames) shown.push_back(quote_name(name));
  }
  return listed(shown);
}

}  // namespace lora::adapters
