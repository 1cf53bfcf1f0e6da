#include "config/flatten.h"

#include <fmt/format.h>

#include <optional>
#include <string_view>
#include <utility>

#include "config/schema.h"

namespace lora::config {
namespace {

class Flattener {
 public:
  template <class Body>
  void section(std::string_view name, const Body& body) {
    const std::string outer = prefix_;
    prefix_ += fmt::format("{}.", name);
    body();
    prefix_ = outer;
  }

  /// The names and their order count as a value, too.
  template <class Item, class Body>
  void named(std::string_view name, std::vector<Item>& items, const Body& body) {
    std::vector<std::string> names;
    for (const Item& item : items) names.push_back(item.name);
    add(name, write_value(names, {}), false, {});
    section(name, [&] {
      for (Item& item : items) section(item.name, [&] { body(item); });
    });
  }

  template <class T>
  void key(std::string_view name, const T& member, const Rule& rule = {}) {
    add(name, write_value(member, rule), true, rule);
  }

  template <class T>
  void key(std::string_view name, const std::optional<T>& member, const Rule& rule = {}) {
    const bool has_word = !rule.absent_word.empty();
    if (member) {
      add(name, write_value(*member, rule), true, rule);
    } else {
      add(name, std::string(has_word ? rule.absent_word : "null"), has_word, rule);
    }
  }

  void only(std::string_view, std::string_view) {}

  std::vector<FlatKey> take() { return std::move(keys_); }

 private:
  void add(std::string_view name, std::string text, bool is_given, const Rule& rule) {
    keys_.push_back({prefix_ + std::string(name), std::move(text), is_given, rule.effect});
  }

  std::string prefix_;
  std::vector<FlatKey> keys_;
};

}  // namespace

std::vector<FlatKey> flatten(RunConfig config) {
  Flattener flattener;
  describe(flattener, config);
  return flattener.take();
}

}  // namespace lora::config
