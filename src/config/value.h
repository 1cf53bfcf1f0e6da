// Reading and writing one value of the run file.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "config/rule.h"
#include "lora/config/run_config.h"
#include "lora/core/path.h"
#include "lora/formats/prompt_template.h"
#include "lora/formats/yaml.h"

namespace lora::config {

using formats::YamlNode;

/// Where values come from: the file, or the command line.
struct Source {
  std::string name;  ///< opens messages
  Path base;         ///< absolute; relative paths count from here
  bool has_lines = true;

  /// "run.yaml:12", or the bare name for the command line.
  std::string place_of(const YamlNode& node) const;
};

/// The key that is being read.
struct KeyContext {
  const Source& source;
  std::string key;  ///< full: train.optimizer.lr
  const Rule& rule;
};

/// Throws ConfigError: the key `must`, and what the node holds instead.
[[noreturn]] void refuse(const YamlNode& node, const KeyContext& context, std::string_view must);

/// Every read_value checks type and rule and throws ConfigError with place and key.
void read_value(const YamlNode& node, const KeyContext& context, int64_t& value);
void read_value(const YamlNode& node, const KeyContext& context, double& value);
void read_value(const YamlNode& node, const KeyContext& context, bool& value);
void read_value(const YamlNode& node, const KeyContext& context, std::string& value);
void read_value(const YamlNode& node, const KeyContext& context, Path& value);
void read_value(const YamlNode& node, const KeyContext& context, Names& value);
void read_value(const YamlNode& node, const KeyContext& context, Patterns& value);
void read_value(const YamlNode& node, const KeyContext& context, TokenIndices& value);
void read_value(const YamlNode& node, const KeyContext& context, formats::PromptTemplate& value);
void read_value(const YamlNode& node, const KeyContext& context, std::vector<int64_t>& value);
void read_value(const YamlNode& node, const KeyContext& context, std::vector<double>& value);
void read_value(const YamlNode& node, const KeyContext& context, std::vector<std::string>& value);

template <class T>
void read_value(const YamlNode& node, const KeyContext& context, std::optional<T>& value) {
  const std::string_view absent = context.rule.absent_word;
  const bool is_absent_word = node.kind == YamlNode::Kind::kScalar && !absent.empty() && node.scalar == absent;
  if (node.kind == YamlNode::Kind::kNull || is_absent_word) {
    value.reset();
    return;
  }
  T given{};
  read_value(node, context, given);
  value = std::move(given);
}

/// YAML text that reads back as the value.
std::string write_value(int64_t value, const Rule& rule);
std::string write_value(double value, const Rule& rule);
std::string write_value(bool value, const Rule& rule);
std::string write_value(const std::string& value, const Rule& rule);
std::string write_value(const Path& value, const Rule& rule);
std::string write_value(const Names& value, const Rule& rule);
std::string write_value(const Patterns& value, const Rule& rule);
std::string write_value(const TokenIndices& value, const Rule& rule);
std::string write_value(const formats::PromptTemplate& value, const Rule& rule);
std::string write_value(const std::vector<int64_t>& value, const Rule& rule);
std::string write_value(const std::vector<double>& value, const Rule& rule);
std::string write_value(const std::vector<std::string>& value, const Rule& rule);

/// A node as YAML text on one line.
std::string flow_text(const YamlNode& node);

/// The form of run.device.
bool is_device(std::string_view text);

}  // namespace lora::config
