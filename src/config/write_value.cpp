#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "config/scalar.h"
#include "config/value.h"
#include "formats/prompt_template_fields.h"

namespace lora::config {
namespace {

template <class T>
std::string write_list(const std::vector<T>& values, const Rule& rule) {
  std::vector<std::string> texts;
  for (const T& value : values) texts.push_back(write_value(value, rule));
  return fmt::format("[{}]", fmt::join(texts, ", "));
}

}  // namespace

std::string write_value(int64_t value, const Rule&) { return fmt::format("{}", value); }
std::string write_value(double value, const Rule&) { return fmt::format("{}", value); }
std::string write_value(bool value, const Rule&) { return value ? "true" : "false"; }

std::string write_value(const std::string& value, const Rule& rule) {
  const bool is_choice = std::find(rule.choices.begin(), rule.choices.end(), value) != rule.choices.end();
  return is_choice ? value : yaml_text(value);
}

std::string write_value(const Path& value, const Rule&) { return yaml_text(value.string()); }

std::string write_value(const Names& value, const Rule& rule) {
  return std::visit([&](const auto& names) { return write_value(names, rule); }, value);
}

std::string write_value(const Patterns& value, const Rule& rule) {
  std::vector<std::string> texts;
  for (const auto& [name, number] : value) {
    texts.push_back(fmt::format("{}: {}", yaml_text(name), write_value(number, rule)));
  }
  return fmt::format("{{{}}}", fmt::join(texts, ", "));
}

std::string write_value(const TokenIndices& value, const Rule& rule) {
  if (const auto* ids = std::get_if<0>(&value)) return write_list(*ids, rule);
  std::vector<std::string> texts;
  for (const auto& [name, ids] : std::get<1>(value))
    texts.push_back(fmt::format("{}: {}", yaml_text(name), write_list(ids, rule)));
  return fmt::format("{{{}}}", fmt::join(texts, ", "));
}

std::string write_value(const formats::PromptTemplate& value, const Rule& rule) {
  if (!value.name.empty()) return value.name;
  std::vector<std::string> texts;
  for (const auto& [name, member] : formats::kTemplateTexts)
    texts.push_back(fmt::format("{}: {}", name, yaml_text(value.*member)));
  for (const auto& [name, member] : formats::kTemplateSwitches) {
    texts.push_back(fmt::format("{}: {}", name, write_value(value.*member, rule)));
  }
  return fmt::format("{{{}}}", fmt::join(texts, ", "));
}

std::string write_value(const std::vector<int64_t>& value, const Rule& rule) { return write_list(value, rule); }
std::string write_value(const std::vector<double>& value, const Rule& rule) { return write_list(value, rule); }
std::string write_value(const std::vector<std::string>& value, const Rule& rule) { return write_list(value, rule); }

std::string flow_text(const YamlNode& node) {
  std::vector<std::string> texts;
  switch (node.kind) {
    case YamlNode::Kind::kNull:
      return "null";
    case YamlNode::Kind::kScalar:
      return node.quoted ? yaml_text(node.scalar) : node.scalar;
    case YamlNode::Kind::kSequence:
      for (const YamlNode& item : node.items) texts.push_back(flow_text(item));
      return fmt::format("[{}]", fmt::join(texts, ", "));
    case YamlNode::Kind::kMap:
      break;
  }
  for (const auto& [key, item] : node.entries) texts.push_back(fmt::format("{}: {}", yaml_text(key), flow_text(item)));
  return fmt::format("{{{}}}", fmt::join(texts, ", "));
}

}  // namespace lora::config
