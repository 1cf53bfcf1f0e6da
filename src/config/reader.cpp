#include "config/reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "config/keys.h"
#include "config/scalar.h"
#include "config/schema.h"
#include "core/check.h"
#include "lora/core/error.h"

namespace lora::config {
namespace {

class Reader {
 public:
  Reader(const YamlNode& root, const Source& source, Places& places) : map_(&root), source_(source), places_(places) {}

  template <class Body>
  void section(std::string_view name, const Body& body) {
    const YamlNode* node = map_->find(name);
    if (node == nullptr || node->kind == YamlNode::Kind::kNull) return;
    const KeyContext place{source_, prefix_ + std::string(name), kNoRule};
    if (node->kind != YamlNode::Kind::kMap) refuse(*node, place, "must be a map of keys");
    const YamlNode* const outer_map = map_;
    const std::string outer_prefix = prefix_;
    map_ = node;
    prefix_ = place.key + ".";
    body();
    map_ = outer_map;
    prefix_ = outer_prefix;
  }

  template <class Item, class Body>
  void named(std::string_view name, std::vector<Item>& items, const Body& body) {
    section(name, [&] {
      for (const auto& [item_name, node] : map_->entries) {
        const KeyContext place{source_, prefix_ + shown(item_name), kNoRule};
        if (!is_word(item_name)) refuse(node, place, "must have a name of letters, digits, - and _");
        if (node.kind != YamlNode::Kind::kMap) refuse(node, place, "must be a map of keys");
        places_[place.key] = source_.place_of(node);
        Item& item = find_or_add(items, item_name);
        section(item_name, [&] { body(item); });
      }
    });
  }

  template <class T>
  void key(std::string_view name, T& member, const Rule& rule = {}) {
    const KeyContext place{source_, prefix_ + std::string(name), rule};
    const YamlNode* node = find(name, rule.alias, place);
    if (node == nullptr) return;
    require_whole(*node, place);
    read_value(*node, place, member);
    places_[place.key] = source_.place_of(*node);
  }

  void only(std::string_view name, std::string_view allowed) {
    const YamlNode* node = map_->find(name);
    if (node == nullptr || node->kind == YamlNode::Kind::kNull) return;
    const std::string found = flow_text(*node);
    require<ConfigError>(found == allowed, "[{}] {}{} must be {} in this version; found {}", source_.place_of(*node), prefix_,
                         name, allowed, shown(found));
  }

 private:
  inline static const Rule kNoRule;

  static bool is_word(const std::string& name) {
    return !name.empty() &&
           std::ranges::all_of(name, [](char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_'; });
  }

  template <class Item>
  static Item& find_or_add(std::vector<Item>& items, const std::string& name) {
    const auto found = std::ranges::find_if(items, [&](const Item& item) { return item.name == name; });
    return found == items.end() ? items.emplace_back(Item{name}) : *found;
  }

  const YamlNode* find(std::string_view name, std::string_view alias, const KeyContext& place) const {
    const YamlNode* node = map_->find(name);
    const YamlNode* other = alias.empty() ? nullptr : map_->find(alias);
    require<ConfigError>(node == nullptr || other == nullptr, "[{}] {} and its other name {} must not both be given; remove one",
                         source_.place_of(other == nullptr ? *map_ : *other), place.key, alias);
    return node == nullptr ? other : node;
  }

  /// A map made from `a.b.c=value` has no line: it names one entry inside a value, which can only
  /// be given whole.
  void require_whole(const YamlNode& node, const KeyContext& place) const {
    const bool is_part = node.kind == YamlNode::Kind::kMap && node.line == 0;
    require<ConfigError>(!is_part, "[{}] {} must be given whole; found {}.{}; write {}=VALUE", source_.name, place.key, place.key,
                         is_part ? shown(node.entries.front().first) : "", place.key);
  }

  const YamlNode* map_;
  const Source& source_;
  Places& places_;
  std::string prefix_;
};

}  // namespace

void read_tree(const YamlNode& root, const Source& source, RunConfig& config, Places& places) {
  if (root.kind == YamlNode::Kind::kNull) return;
  if (root.kind != YamlNode::Kind::kMap) {
    fail<ConfigError>("[{}] a run file must be a map of sections such as run, model and data; found {}", source.place_of(root),
                      shown(flow_text(root)));
  }
  Reader reader(root, source, places);
  describe(reader, config);
  check_keys(root, source);
}

}  // namespace lora::config
