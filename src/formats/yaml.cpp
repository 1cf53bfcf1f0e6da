#include "lora/formats/yaml.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <map>
#include <optional>
#include <sstream>
#include <unordered_set>

#include "core/check.h"
#include "lora/core/text.h"

namespace lora::formats {
namespace {

constexpr std::string_view kMergeKey = "<<";
constexpr std::string_view kStringTag = "tag:yaml.org,2002:str";

int line_of(const YAML::Mark& mark) { return mark.line + 1; }

[[noreturn]] void refuse(std::string_view where, int line, std::string_view must, std::string_view found) {
  fail<ConfigError>("[{}:{}] {}; found {}; correct the line", where, line, must, found);
}

/// What an anchored node weighs when an alias brings it again.
struct Weight {
  size_t nodes = 0, bytes = 0, depth = 0;
};

Weight weight_of(const YamlNode& node) {
  Weight total{.nodes = 1, .bytes = node.scalar.size()};
  const auto add = [&](const YamlNode& child) {
    const Weight weight = weight_of(child);
    total.nodes += weight.nodes;
    total.bytes += weight.bytes;
    total.depth = std::max(total.depth, weight.depth + 1);
  };
  for (const YamlNode& item : node.items) add(item);
  for (const auto& [key, value] : node.entries) {
    total.bytes += key.size();
    add(value);
  }
  return total;
}

/// Receives the parser's events and builds the tree.
class Builder : public YAML::EventHandler {
 public:
  Builder(std::string_view where, const YamlLimits& limits) : where_(where), limits_(limits) {}

  YamlNode take_root() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (++documents_ > 1) {
      refuse(where_, line_of(mark), "must hold one YAML document", "more after its end");
    }
  }
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    if (expects_key()) refuse_key(mark, "null");
    place({.kind = YamlNode::Kind::kNull, .line = line_of(mark)}, anchor, mark);
  }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    if (expects_key()) refuse_key(mark, "an alias");
    const auto target = anchors_.find(anchor);
    if (target == anchors_.end()) {
      refuse(where_, line_of(mark), "an alias must stand after the end of what it repeats", "one inside of it");
    }
    YamlNode copy = copy_within_limits(target->second, mark);
    place(std::move(copy), 0, mark);
  }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, const std::string& value) override {
    check_tag(mark, tag);
    spend({.nodes = 0, .bytes = value.size()}, mark);
    const bool quoted = tag == "!" || tag == kStringTag;
    YamlNode node{.kind = YamlNode::Kind::kScalar, .scalar = value, .quoted = quoted, .line = line_of(mark)};
    if (expects_key()) {
      take_key(std::move(node), anchor, mark);
    } else {
      place(std::move(node), anchor, mark);
    }
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, YamlNode::Kind::kSequence);
  }
  void OnSequenceEnd() override { close(); }

  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, YamlNode::Kind::kMap);
  }
  void OnMapEnd() override {
    merge(open_.back());
    close();
  }

 private:
  /// A sequence or map that is not closed yet.
  struct Frame {
    YamlNode node;
    YAML::anchor_t anchor = 0;
    YAML::Mark mark;
    std::optional<std::string> key = {};  ///< the one whose value comes next
    int key_line = 0;
    bool key_is_merge = false;
    std::optional<YamlNode> merged = {};  ///< value of the merge key
    std::unordered_set<std::string> keys = {};
  };

  bool expects_key() const { return !open_.empty() && open_.back().node.kind == YamlNode::Kind::kMap && !open_.back().key; }

  [[noreturn]] void refuse_key(const YAML::Mark& mark, std::string_view found) const {
    refuse(where_, line_of(mark), "keys must be plain texts", found);
  }

  void check_tag(const YAML::Mark& mark, const std::string& tag) const {
    const bool untagged = tag.empty() || tag == "?" || tag == "!";
    if (untagged || tag == kStringTag) return;
    refuse(where_, line_of(mark), "only the tag !!str has a meaning here", fmt::format("{:?}", tag));
  }

  void spend(const Weight& weight, const YAML::Mark& mark) {
    nodes_ += weight.nodes;
    bytes_ += weight.bytes;
    if (nodes_ > limits_.max_nodes || bytes_ > limits_.max_bytes) {
      refuse(
          where_, line_of(mark),
          fmt::format("with aliases expanded there must be at most {} values and {} bytes", limits_.max_nodes, limits_.max_bytes),
          "more");
    }
  }

  YamlNode copy_within_limits(const YamlNode& node, const YAML::Mark& mark) {
    const Weight weight = weight_of(node);
    if (open_.size() + weight.depth > limits_.max_depth) refuse_depth(mark);
    // The node itself is counted where it is placed.
    spend({.nodes = weight.nodes - 1, .bytes = weight.bytes}, mark);
    return node;
  }

  [[noreturn]] void refuse_depth(const YAML::Mark& mark) const {
    refuse(where_, line_of(mark), fmt::format("values must be nested at most {} deep", limits_.max_depth), "more");
  }

  void take_key(YamlNode node, YAML::anchor_t anchor, const YAML::Mark& mark) {
    Frame& frame = open_.back();
    if (anchor != 0) anchors_[anchor] = node;
    frame.key_is_merge = !node.quoted && node.scalar == kMergeKey;
    frame.key_line = node.line;
    if (!frame.keys.insert(node.scalar).second) {
      refuse(where_, line_of(mark), "a key must stand once in its map", fmt::format("{:?} again", node.scalar));
    }
    frame.key = std::move(node.scalar);
  }

  void open(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, YamlNode::Kind kind) {
    check_tag(mark, tag);
    if (expects_key()) refuse_key(mark, kind == YamlNode::Kind::kMap ? "a map" : "a list");
    if (open_.size() >= limits_.max_depth) refuse_depth(mark);
    open_.push_back({.node = {.kind = kind, .line = line_of(mark)}, .anchor = anchor, .mark = mark});
  }

  void close() {
    Frame frame = std::move(open_.back());
    open_.pop_back();
    place(std::move(frame.node), frame.anchor, frame.mark);
  }

  void place(YamlNode node, YAML::anchor_t anchor, const YAML::Mark& mark) {
    spend({.nodes = 1}, mark);
    if (anchor != 0) anchors_[anchor] = copy_within_limits(node, mark);
    if (open_.empty()) {
      root_ = std::move(node);
      return;
    }
    Frame& parent = open_.back();
    if (parent.node.kind == YamlNode::Kind::kSequence) {
      parent.node.items.push_back(std::move(node));
    } else if (parent.key_is_merge) {
      parent.merged = std::move(node);
    } else {
      node.key_line = parent.key_line;
      parent.node.entries.emplace_back(std::move(*parent.key), std::move(node));
    }
    parent.key.reset();
    parent.key_is_merge = false;
  }

  /// Adds the entries of the map, or list of maps, under the merge key: own keys win, then the maps
  /// in their order.
  void merge(Frame& frame) {
    if (!frame.merged) return;
    YamlNode& value = *frame.merged;
    if (value.kind == YamlNode::Kind::kMap) {
      merge_map(frame, value);
      return;
    }
    if (value.kind != YamlNode::Kind::kSequence) refuse_merge(value);
    for (YamlNode& item : value.items) merge_map(frame, item);
  }

  void merge_map(Frame& frame, YamlNode& map) {
    if (map.kind != YamlNode::Kind::kMap) refuse_merge(map);
    for (auto& [key, value] : map.entries) {
      if (frame.keys.insert(key).second) {
        frame.node.entries.emplace_back(std::move(key), std::move(value));
      }
    }
  }

  [[noreturn]] void refuse_merge(const YamlNode& value) const {
    refuse(where_, value.line, "the merge key << must have a map or a list of maps", "another value");
  }

  std::string_view where_;
  const YamlLimits& limits_;
  YamlNode root_;
  std::vector<Frame> open_;
  std::map<YAML::anchor_t, YamlNode> anchors_;
  size_t nodes_ = 0, bytes_ = 0, documents_ = 0;
};

int line_at(std::string_view text, size_t offset) {
  return 1 + static_cast<int>(std::ranges::count(text.substr(0, offset), '\n'));
}

void check_characters(std::string_view text, std::string_view where) {
  const size_t invalid = find_invalid_utf8(text);
  if (invalid < text.size()) {
    refuse(where, line_at(text, invalid), "must be UTF-8", "other bytes");
  }
  const auto control =
      std::ranges::find_if(text, [](unsigned char c) { return (c < 0x20 && c != '\t' && c != '\n' && c != '\r') || c == 0x7F; });
  if (control != text.end()) {
    // The library would take one of them, 0x04, for the end of the text.
    refuse(where, line_at(text, static_cast<size_t>(control - text.begin())), "must not hold control characters",
           fmt::format("0x{:02x}", static_cast<unsigned char>(*control)));
  }
}

}  // namespace

const YamlNode* YamlNode::find(std::string_view key) const {
  const auto found = std::ranges::find(entries, key, [](const auto& entry) -> std::string_view { return entry.first; });
  return found == entries.end() ? nullptr : &found->second;
}

YamlNode parse_yaml(std::string_view text, std::string_view where, const YamlLimits& limits) {
  require<ConfigError>(text.size() <= limits.max_bytes,
                       "[{}] must have at most {} bytes of YAML; found {}; is it the right file?", where, limits.max_bytes,
                       text.size());
  check_characters(text, where);
  Builder builder(where, limits);
  const auto read = [&](std::string_view part, Builder& into) {
    try {
      std::istringstream stream{std::string(part)};
      YAML::Parser parser(stream);
      while (parser.HandleNextDocument(into)) {
      }
    } catch (const YAML::Exception& error) {
      refuse(where, error.mark.is_null() ? 1 : line_of(error.mark), "must be YAML", error.msg);
    }
  };
  read(text, builder);
  // The parser takes a quote that never ends for one that ends with the file, if a blank stands there.
  Builder without_end(where, limits);
  read(text.substr(0, text.find_last_not_of(" \t\r\n") + 1), without_end);
  return builder.take_root();
}

}  // namespace lora::formats
