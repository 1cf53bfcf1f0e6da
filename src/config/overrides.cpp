#include "config/overrides.h"

#include <string>
#include <utility>

#include "config/scalar.h"
#include "core/check.h"
#include "lora/core/error.h"

namespace lora::config {
namespace {

using formats::YamlNode;

constexpr size_t kMaxDepth = 8;

YamlNode nested(std::string_view path, YamlNode value, std::string_view text, size_t depth = 0) {
  const size_t dot = path.find('.');
  const std::string_view name = path.substr(0, dot);
  require<ConfigError>(!name.empty() && depth < kMaxDepth,
                       "[--set] must be KEY=VALUE with a key such as train.max_steps; found {}", shown(text));
  YamlNode map;
  map.kind = YamlNode::Kind::kMap;
  if (dot != std::string_view::npos) value = nested(path.substr(dot + 1), std::move(value), text, depth + 1);
  map.entries.emplace_back(name, std::move(value));
  return map;
}

}  // namespace

YamlNode parse_override(std::string_view text) {
  const size_t equals = text.find('=');
  require<ConfigError>(equals != std::string_view::npos, "[--set] must be KEY=VALUE, for example train.max_steps=10; found {}",
                       shown(text));
  const std::string_view path = text.substr(0, equals);
  return nested(path, formats::parse_yaml(text.substr(equals + 1), "--set " + shown(path)), text);
}

}  // namespace lora::config
