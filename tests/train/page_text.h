// Looking into text that was written for people.
#pragma once

#include <string>
#include <string_view>

namespace lora::testing {

inline size_t count(std::string_view text, std::string_view part) {
  size_t found = 0;
  for (size_t at = text.find(part); at != std::string_view::npos; at = text.find(part, at + 1)) {
    ++found;
  }
  return found;
}

inline bool has(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

/// The data of the first SVG path of a class; "none" without one.
inline std::string path_of(std::string_view html, std::string_view css_class) {
  const std::string start = "<path class=\"" + std::string(css_class) + "\" d=\"";
  const size_t found = html.find(start);
  if (found == std::string_view::npos) return "none";
  html.remove_prefix(found + start.size());
  return std::string(html.substr(0, html.find('"')));
}

}  // namespace lora::testing
