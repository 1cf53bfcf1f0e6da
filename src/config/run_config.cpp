#include "lora/config/run_config.h"

#include <filesystem>

#include "config/overrides.h"
#include "config/reader.h"
#include "config/saved_method.h"
#include "config/whole.h"
#include "core/check.h"
#include "lora/core/error.h"
#include "lora/core/file.h"
#include "lora/formats/yaml.h"

namespace lora::config {
namespace {

/// A run file that cannot be read is wrong usage, unlike a file that it names.
std::string read_run_file(const Path& file) {
  try {
    return read_file(file, formats::YamlLimits{}.max_bytes);
  } catch (const IoError& error) {
    throw ConfigError(error.what());
  }
}

/// The sub-command that a run file is made for.
std::string own_command(const RunConfig& config) {
  return config.run.mode.value_or(config.adapter.method == "none" ? "train" : "finetune");
}

}  // namespace

RunConfig load_run_config(const Path& file, const std::vector<std::string>& overrides, const Path& override_base,
                          std::string_view command) {
  const Path folder = std::filesystem::absolute(file).parent_path();
  return parse_run_config(read_run_file(file), file.string(), folder, overrides, override_base, command);
}

RunConfig parse_run_config(std::string_view text, std::string_view name, const Path& base,
                           const std::vector<std::string>& overrides, const Path& override_base, std::string_view command) {
  RunConfig config;
  if (command == "train") config.adapter.method = "none";
  Places places;
  const Source file{std::string(name), std::filesystem::absolute(base)};
  const formats::YamlNode root = formats::parse_yaml(text, name);
  const formats::YamlNode* stages = root.find("stages");
  require<ConfigError>(stages == nullptr,
                       "[{}] stages are run by lora finetune alone; found them in a file for another command; give it "
                       "the config.yaml in the folder of a stage, with --set run.mode=null",
                       stages == nullptr ? "" : file.place_of(*stages));
  read_tree(root, file, config, places);
  const Source command_line{"--set", std::filesystem::absolute(override_base), false};
  for (const std::string& override_text : overrides) {
    read_tree(parse_override(override_text), command_line, config, places);
  }
  if (command.empty()) {
    return parse_run_config(text, name, base, overrides, override_base, own_command(config));
  }
  if (command != "train") take_saved_methods(config, places);
  check_whole(config, places, name, command);
  config.run.mode = command;
  return config;
}

}  // namespace lora::config
