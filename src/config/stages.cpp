#include "lora/config/stages.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <utility>

#include "config/dump.h"
#include "config/overrides.h"
#include "config/reader.h"
#include "config/saved_method.h"
#include "config/scalar.h"
#include "config/schema.h"
#include "config/whole.h"
#include "core/check.h"
#include "lora/core/error.h"
#include "lora/core/file.h"
#include "lora/formats/yaml.h"

namespace lora::config {
namespace {

using Stage = StagedConfig::Stage;

constexpr std::string_view kStages = "stages";
constexpr std::array<std::string_view, 7> kSections = {"adapter", "freeze", "data", "train", "checkpoint", "generate", "log"};
/// What a run's own folder holds besides its stages.
constexpr std::array<std::string_view, 7> kTakenNames = {"adapter", "best", "model", "cache", "checkpoints", "config", "report"};

/// One entry of `stages` in the file: its sections.
struct StageTree {
  std::string name, place;
  YamlNode sections;
};

bool is_folder_name(std::string_view name) {
  const bool has_plain =
      std::all_of(name.begin(), name.end(), [](unsigned char c) { return std::isalnum(c) || c == '_' || c == '-'; });
  return !name.empty() && name.size() <= 64 && has_plain && std::ranges::find(kTakenNames, name) == kTakenNames.end();
}

StageTree read_stage(const YamlNode& node, const Source& file) {
  const std::string place = file.place_of(node);
  require<ConfigError>(node.kind == YamlNode::Kind::kMap, "[{}] a stage must be a map with a name and sections; found {}", place,
                       shown(flow_text(node)));
  const YamlNode* name = node.find("name");
  require<ConfigError>(
      name != nullptr && name->kind == YamlNode::Kind::kScalar && is_folder_name(name->scalar),
      "[{}] a stage must have a name of letters, digits, _ and -, which its folder gets, other than {}; found {}", place,
      fmt::join(kTakenNames, ", "), name == nullptr ? "none" : shown(flow_text(*name)));
  StageTree stage{name->scalar, place, node};
  std::erase_if(stage.sections.entries, [](const auto& entry) { return entry.first == "name"; });
  for (const auto& [section, value] : stage.sections.entries) {
    require<ConfigError>(std::ranges::find(kSections, section) != kSections.end(),
                         "[{}] a stage may have the sections {}; found {}; put what all stages share beside stages",
                         file.place_of(value), fmt::join(kSections, ", "), shown(section));
  }
  return stage;
}

/// Takes `stages` out of the file's tree.
std::vector<StageTree> take_stages(YamlNode& root, const Source& file) {
  const YamlNode* node = root.find(kStages);
  if (node == nullptr) return {};
  require<ConfigError>(node->kind == YamlNode::Kind::kSequence && !node->items.empty(),
                       "[{}] stages must be a list of stages; found {}", file.place_of(*node), shown(flow_text(*node)));
  std::vector<StageTree> stages;
  for (const YamlNode& item : node->items) {
    stages.push_back(read_stage(item, file));
    const auto same = std::ranges::count_if(stages, [&](const auto& stage) { return stage.name == stages.back().name; });
    require<ConfigError>(same == 1, "[{}] stages must have different names; found {} again", stages.back().place,
                         stages.back().name);
  }
  std::erase_if(root.entries, [](const auto& entry) { return entry.first == kStages; });
  return stages;
}

/// Overrides of all stages, and those of one by its name.
struct Overrides {
  std::vector<YamlNode> common;
  std::map<std::string, std::vector<YamlNode>> by_stage;
};

Overrides read_overrides(const std::vector<std::string>& texts, const std::vector<StageTree>& stages) {
  Overrides overrides;
  for (const std::string& text : texts) {
    YamlNode tree = parse_override(text);
    const YamlNode* of_stages = tree.find(kStages);
    if (of_stages == nullptr) {
      overrides.common.push_back(std::move(tree));
      continue;
    }
    const bool has_stage =
        of_stages->kind == YamlNode::Kind::kMap && of_stages->entries.front().second.kind == YamlNode::Kind::kMap;
    const std::string name = has_stage ? of_stages->entries.front().first : "";
    const bool is_known = std::ranges::any_of(stages, [&](const auto& stage) { return stage.name == name; });
    require<ConfigError>(is_known, "[--set] a key of a stage is stages.NAME.section.key with the name of a stage; found {}",
                         shown(text));
    overrides.by_stage[name].push_back(of_stages->entries.front().second);
  }
  return overrides;
}

/// Keys that say how a run trains an adapter, whatever form that has.
bool is_of_the_run(std::string_view key) {
  constexpr std::array<std::string_view, 6> kKeys = {"lora_dropout", "prefix_dropout", "encoder_dropout",
                                                     "dropout",      "fused_rows",     "init_from"};
  return std::ranges::find(kKeys, key) != kKeys.end();
}

/// Visits the keys of an adapter in their fixed order: notes those of one, then takes those out of another that are the same.
class SameKeys {
 public:
  template <class T>
  void key(std::string_view name, std::optional<T>& value, const Rule& = {}) {
    if (!is_second_) return values_.push_back(&value);
    const auto& first = *static_cast<const std::optional<T>*>(values_.at(next_++));
    if (!is_of_the_run(name) && value == first) value.reset();
  }
  template <class T>
  void key(std::string_view, T&, const Rule& = {}) {}
  template <class Body>
  void section(std::string_view, const Body&) {}
  void begin_second() { is_second_ = true; }

 private:
  std::vector<const void*> values_;
  size_t next_ = 0;
  bool is_second_ = false;
};

/// The saved adapter, which may be in another form than it was begun in, stands for what both stages say.
void leave_to_saved(const AdapterSection& trained, AdapterSection& next) {
  AdapterSection first = trained;
  SameKeys same;
  describe_adapter(same, first);
  same.begin_second();
  describe_adapter(same, next);
  if (next.eva_config == trained.eva_config) next.eva_config = {};
  if (next.loftq_config == trained.loftq_config) next.loftq_config = {};
}

/// An adapter goes on in one of the same method in the next stage.
void continue_adapter(const AdapterSection& trained, const Path& saved, const std::string& place, AdapterSection& next) {
  require<ConfigError>(
      trained.method != "ptuning" && !trained.prefix_projection.value_or(false),
      "[{}] what a stage trains must be in its adapter's file; found {}, whose network makes the virtual tokens and "
      "is not; train it in one stage, the last",
      place, trained.method == "ptuning" ? "ptuning" : "prefix_projection");
  leave_to_saved(trained, next);
  require<ConfigError>(
      next.init_lora_weights.value_or("true") == "true",
      "[{}] adapter.init_lora_weights belongs to the stage that begins the adapter; found {} in a later one; remove it", place,
      next.init_lora_weights.value_or(""));
  next.init_from = saved;
}

/// The adapters beside the first. `before` as in continue_from.
void continue_more_adapters(const Stage& before, const std::string& place, RunConfig& next) {
  for (const auto& [name, trained] : before.config.more_adapters) {
    const auto same = std::ranges::find(next.more_adapters, name, &NamedAdapter::name);
    require<ConfigError>(
        same != next.more_adapters.end() && same->adapter.method == trained.method,
        "[{}] what stage {} trains must have a place in the next: adapter.also.{} must be there and of method {}; "
        "found another or none; give it once, beside stages",
        place, before.name, name, trained.method);
    continue_adapter(trained, before.config.run.output_dir / "adapter" / name, place, same->adapter);
  }
}

/// Where the trained values of `before`, a stage as it is written, go on in the stage after it.
void continue_from(const Stage& before, const StageTree& tree, const RunConfig& common, RunConfig& next) {
  const AdapterSection& trained = before.config.adapter;
  AdapterSection& adapter = next.adapter;
  require<ConfigError>(adapter.init_from == common.adapter.init_from && adapter.tokens_from == common.adapter.tokens_from,
                       "[{}] a later stage must start from the stage before it; found init_from or tokens_from; remove the key",
                       tree.place);
  require<ConfigError>(before.config.freeze.train.empty(),
                       "[{}] a stage before another must train its adapter alone, which the next one "
                       "starts from; found freeze.train in {}; free base weights in the last stage",
                       tree.place, before.name);
  const Path saved = before.config.run.output_dir / "adapter";
  adapter.init_from.reset();
  adapter.tokens_from.reset();
  continue_more_adapters(before, tree.place, next);
  if (adapter.method == trained.method) return continue_adapter(trained, saved, tree.place, adapter);
  const bool takes_rows = adapter.method == "lora" || adapter.method == "adalora";
  require<ConfigError>(
      trained.method == "trainable_tokens" && !trained.target_modules && takes_rows,
      "[{}] what stage {} trains must have a place in stage {}: an adapter of the same method, or trainable_tokens of the "
      "input embedding before lora or adalora; found {} before {}; train the first apart, merge it, and use the result as "
      "model.path",
      tree.place, before.name, tree.name, trained.method, adapter.method);
  if (!adapter.trainable_token_indices) adapter.trainable_token_indices = trained.trainable_token_indices;
  require<ConfigError>(
      adapter.trainable_token_indices && adapter.trainable_token_indices == trained.trainable_token_indices,
      "[{}] adapter.trainable_token_indices must be those of stage {}; found others; give them once, beside stages", tree.place,
      before.name);
  adapter.tokens_from = saved;
}

/// What a stage's part of the run file has to say: neither what is common, nor what follows from its place among the stages.
RunConfig without_derived(RunConfig config, const RunConfig& common, bool is_first) {
  config.run = common.run;
  if (config.data.cache_dir == common.run.output_dir / "cache") config.data.cache_dir = common.data.cache_dir;
  if (is_first) return config;
  config.adapter.init_from = common.adapter.init_from;
  config.adapter.tokens_from = common.adapter.tokens_from;
  for (auto& one : config.more_adapters) {
    const auto same = std::ranges::find(common.more_adapters, one.name, &NamedAdapter::name);
    one.adapter.init_from = same == common.more_adapters.end() ? std::nullopt : same->adapter.init_from;
  }
  return config;
}

}  // namespace

StagedConfig load_staged_config(const Path& file, const std::vector<std::string>& overrides, const Path& override_base,
                                std::string_view command) {
  std::string text;
  try {
    text = read_file(file, formats::YamlLimits{}.max_bytes);
  } catch (const IoError& error) {
    throw ConfigError(error.what());  // a run file that cannot be read is wrong usage
  }
  return parse_staged_config(text, file.string(), std::filesystem::absolute(file).parent_path(), overrides, override_base,
                             command);
}

StagedConfig parse_staged_config(std::string_view text, std::string_view name, const Path& base,
                                 const std::vector<std::string>& overrides, const Path& override_base, std::string_view command) {
  const Source file{std::string(name), std::filesystem::absolute(base)};
  YamlNode root = formats::parse_yaml(text, name);
  const auto trees = take_stages(root, file);
  StagedConfig staged;
  if (trees.empty()) {
    staged.common = parse_run_config(text, name, base, overrides, override_base, command);
    staged.stages.push_back({"", staged.common});
    return staged;
  }
  require<ConfigError>(command == "finetune", "[{}] stages are run by lora finetune; found them with lora {}",
                       trees.front().place, command);
  const Overrides given = read_overrides(overrides, trees);
  const Source command_line{"--set", std::filesystem::absolute(override_base), false};
  const auto read = [&](const StageTree* stage, RunConfig& config, Places& places) {
    read_tree(root, file, config, places);
    if (stage != nullptr) read_tree(stage->sections, file, config, places);
    for (const YamlNode& tree : given.common) read_tree(tree, command_line, config, places);
    if (stage == nullptr || !given.by_stage.contains(stage->name)) return;
    for (const YamlNode& tree : given.by_stage.at(stage->name)) read_tree(tree, command_line, config, places);
  };
  Places places_of_common;
  read(nullptr, staged.common, places_of_common);
  const Path output = staged.common.run.output_dir;
  require<ConfigError>(staged.common.run.resume == "auto" || staged.common.run.resume == "none",
                       "[{}] run.resume must be auto or none with stages; found {}", name, staged.common.run.resume);
  std::optional<Stage> before;  // as it is written
  for (const StageTree& tree : trees) {
    Stage stage{tree.name, {}};
    Places places;
    read(&tree, stage.config, places);
    Stage written = stage;
    written.config.run.output_dir = output / tree.name;
    if (before) {
      continue_from(*before, tree, staged.common, stage.config);
      // What follows from the stages before is as good as written.
      if (!written.config.adapter.trainable_token_indices)
        written.config.adapter.trainable_token_indices = stage.config.adapter.trainable_token_indices;
    }
    before = std::move(written);
    take_saved_methods(stage.config, places);
    check_whole(stage.config, places, name, command);
    stage.config.run.mode = command;
    stage.config.run.output_dir = output / tree.name;
    stage.config.data.cache_dir = stage.config.data.cache_dir.value_or(output / "cache");
    staged.stages.push_back(std::move(stage));
  }
  return staged;
}

std::string dump_staged_config(const StagedConfig& staged) {
  if (!staged.is_staged()) return dump_run_config(staged.common);
  std::string text = dump_run_config(staged.common) + "stages:\n";
  const auto common = flatten(staged.common);
  for (const Stage& stage : staged.stages) {
    std::vector<FlatKey> own;
    const auto keys = flatten(without_derived(stage.config, staged.common, &stage == &staged.stages.front()));
    for (const FlatKey& flat : keys) {
      const auto same = std::ranges::find(common, flat.key, &FlatKey::key);
      const bool is_another = same == common.end() || same->text != flat.text;
      if (flat.is_given && is_another) own.push_back(flat);
    }
    text += fmt::format("  - name: {}\n{}", stage.name, write_keys(own, 2));
  }
  return text;
}

}  // namespace lora::config
