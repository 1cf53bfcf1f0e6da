#include "config/dump.h"

#include <fmt/format.h>

#include <string>
#include <string_view>
#include <vector>

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

std::string indent(size_t depth) { return std::string(2 * depth, ' '); }

}  // namespace

std::string write_keys(const std::vector<FlatKey>& keys, size_t outer) {
  std::string text;
  std::vector<std::string> open;  // the sections that the last key stands in
  for (const FlatKey& flat : keys) {
    std::vector<std::string> sections = split(flat.key);
    const std::string name = sections.back();
    sections.pop_back();
    size_t shared = 0;
    while (shared < sections.size() && shared < open.size() && sections[shared] == open[shared]) ++shared;
    for (size_t depth = shared; depth < sections.size(); ++depth) {
      text += fmt::format("{}{}:\n", indent(outer + depth), sections[depth]);
    }
    text += fmt::format("{}{}: {}\n", indent(outer + sections.size()), name, flat.text);
    open = std::move(sections);
  }
  return text;
}

std::string dump_run_config(const RunConfig& config) {
  std::vector<FlatKey> keys = flatten(config);
  std::erase_if(keys, [](const FlatKey& flat) { return !flat.is_given; });
  return write_keys(keys);
}

}  // namespace lora::config
