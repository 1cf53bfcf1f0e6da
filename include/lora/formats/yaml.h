#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lora::formats {

/// A strict YAML tree with the place of everything in the file. Aliases are expanded (within limits), merge keys
/// (`<<: *base`) applied, duplicate keys refused.
struct YamlNode {
  enum class Kind { kNull, kScalar, kSequence, kMap };
  Kind kind = Kind::kNull;
  std::string scalar;    ///< text of a scalar
  bool quoted = false;   ///< a quoted scalar is text, never a number or boolean
  int line = 0;          ///< from 1
  std::vector<YamlNode> items;                            ///< of a sequence
  std::vector<std::pair<std::string, YamlNode>> entries;  ///< of a map, in file order

  const YamlNode* find(std::string_view key) const;
};

struct YamlLimits {
  size_t max_bytes = 1u << 20;
  size_t max_depth = 64;
  size_t max_nodes = 100'000;  ///< after the expansion of aliases
};

/// Parses one YAML document. Throws ConfigError: `<where>:<line>: ...`.
YamlNode parse_yaml(std::string_view text, std::string_view where, const YamlLimits& limits = {});

}  // namespace lora::formats
