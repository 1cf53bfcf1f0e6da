#include <fmt/format.h>

#include <string>
#include <string_view>
#include <vector>

#include "config/flatten.h"
#include "lora/config/run_config.h"

namespace lora::config {
namespace {

std::vector<std::string> split(const std::string& key) {
  std::vector<std::string> parts;
  size_t start = 0;
  for (size_t dot = key.find('.'); dot != std::string::npos; dot = key.find('.', start)) {
    parts.push_back(key.substr(start, dot - start));
    start = dot + 1;
  }
  parts.push_back(key.substr(start));
  return parts;
}

std::string indent(size_t depth) {
  return std::string(2 * depth, ' ');
}

}  // namespace

std::string dump_run_config(const RunConfig& config) {
  std::string text;
  std::vector<std::string> open;  // the sections that the last key stands in
  for (const FlatKey& flat : flatten(config)) {
    if (!flat.is_given) continue;
    std::vector<std::string> sections = split(flat.key);
    const std::string name = sections.back();
    sections.pop_back();
    size_t shared = 0;
    while (shared < sections.size() && shared < open.size() && sections[shared] == open[shared])
      ++shared;
    for (size_t depth = shared; depth < sections.size(); ++depth) {
      text += fmt::format("{}{}:\n", indent(depth), sections[depth]);
    }
    text += fmt::format("{}{}: {}\n", indent(sections.size()), name, flat.text);
    open = std::move(sections);
  }
  return text;
}

}  // namespace lora::config
