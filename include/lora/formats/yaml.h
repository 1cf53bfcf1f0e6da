#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lora::formats {

/// A strict YAML tree with the place of everything in the file. Aliases are expanded (within
/// limits), merge keys (`<<: *base`) applied, duplicate keys refused.
struct YamlNode {
  enum class Kind { kNull, kScalar, kSequence, kMap };
  Kind kind = Kind::kNull;
  std::string scalar = {};           ///< text of a scalar
  bool quoted = false;               ///< a quoted scalar is text, never a number or boolean
  int line = 0;                      ///< from 1; of an expanded alias: where its anchor is
  int key_line = 0;                  ///< of a map's value: where its key is; else 0
  std::vector<YamlNode> items = {};  ///< of a sequence
  /// Of a map, in file order; what merge keys bring comes last.
  std::vector<std::pair<std::string, YamlNode>> entries = {};

  /// Value of a map's key; null when there is none.
  const YamlNode* find(std::string_view key) const;
};

/// Bounds that a file from outside must keep to.
struct YamlLimits {
  size_t max_bytes = 1u << 20;  ///< also of all scalars after the expansion of aliases
  size_t max_depth = 64;
  size_t max_nodes = 100'000;  ///< after the expansion of aliases
};

/// Parses one YAML document; an empty text is null. Refused are: more documents, keys that are not
/// scalars, tags other than !!str, control characters, bytes that are not UTF-8.
/// Throws ConfigError: `[<where>:<line>] ...`.
YamlNode parse_yaml(std::string_view text, std::string_view where, const YamlLimits& limits = {});

}  // namespace lora::formats
