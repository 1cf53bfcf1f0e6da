#include "lora/io/carry_over.h"

#include <filesystem>
#include <set>
#include <string>

#include "formats/json.h"
#include "lora/core/file.h"

namespace lora::io {
namespace {

constexpr const char *kConfig = "config.json", *kGeneration = "generation_config.json";

formats::OrderedJson read_json(const Path& file) {
  constexpr uint64_t kMostBytes = 16 << 20;
  return formats::parse_ordered_json(read_file(file, kMostBytes), file.string());
}

}  // namespace

void carry_over_config(const Path& from, const Path& to) {
  const std::set<std::string> of_storage = {"quantization_config", "torch_dtype", "dtype", "_name_or_path"};
  const std::set<std::string> not_ours = {"attention_dropout", "use_cache", "pretraining_tp"};  // written for other tools alone
  if (!std::filesystem::exists(from / kConfig)) return;
  formats::OrderedJson config = read_json(to / kConfig);
  const formats::OrderedJson base = read_json(from / kConfig);
  for (const auto& [key, value] : base.items()) {
    if (not_ours.contains(key) || (!config.contains(key) && !of_storage.contains(key))) config[key] = value;
  }
  write_file_atomically(to / kConfig, config.dump(2) + "\n");
  for (const auto& entry : std::filesystem::directory_iterator(from)) {  // what auto_map names
    if (entry.path().extension() == ".py") write_file_atomically(to / entry.path().filename(), read_file(entry.path()));
  }
  if (std::filesystem::exists(from / kGeneration)) write_file_atomically(to / kGeneration, read_file(from / kGeneration));
}

}  // namespace lora::io
