#include "lora/models/registry.h"

#include <deque>

#include "core/check.h"
#include "formats/json.h"
#include "lora/core/file.h"
#include "lora/core/text.h"

namespace lora::models {
namespace {

constexpr uint64_t kMaxConfigBytes = 16 << 20;

/// Of the process. References to its entries stay good while it grows.
std::deque<Architecture>& table() {
  static std::deque<Architecture> architectures;
  return architectures;
}

const Architecture* find(std::string Architecture::*member, std::string_view value) {
  for (const auto& known : table()) {
    if (known.*member == value) return &known;
  }
  return nullptr;
}

std::string nearest(std::string Architecture::*member, std::string_view name) {
  std::vector<std::string> names;
  for (const auto& known : table()) names.push_back(known.*member);
  return fmt::format("{}", fmt::join(nearest_names(name, names, 3), ", "));
}

}  // namespace

void register_model(Architecture architecture) {
  require<ConfigError>(!architecture.name.empty() && architecture.load && architecture.save,
                       "[models.register_model] an architecture must have a name, load and save; found {:?} without",
                       architecture.name);
  const bool is_new = find(&Architecture::name, architecture.name) == nullptr &&
                      find(&Architecture::model_type, architecture.model_type) == nullptr;
  require<ConfigError>(is_new,
                       "[models.register_model] names of architectures and their model types must be unique; found a second {:?} "
                       "({}); choose another",
                       architecture.name, architecture.model_type);
  table().push_back(std::move(architecture));
}

const Architecture& architecture(std::string_view name) {
  const Architecture* found = find(&Architecture::name, name);
  require<ConfigError>(found != nullptr, "[model.arch] the architecture must be known to this program; found {:?}; it knows {}",
                       name, nearest(&Architecture::name, name));
  return *found;
}

const Architecture& architecture_of(const Path& directory) {
  const Path file = directory / "config.json";
  require<IoError>(std::filesystem::is_directory(directory), "[model] a model must be a directory; found no directory at {}",
                   directory.string());
  require<IoError>(std::filesystem::exists(file),
                   "[model] a model directory must hold config.json (Hugging Face's layout); {} has none", directory.string());
  const auto config = formats::parse_json(read_file(file, kMaxConfigBytes), file.string());
  std::string type = "llama";
  if (const auto entry = config.find("model_type"); entry != config.end()) {
    require<FormatError>(entry->is_string(), "[{}] model_type must be a string; found {}", file.string(), entry->dump());
    type = entry->get<std::string>();
  }
  const Architecture* found = find(&Architecture::model_type, type);
  require<FormatError>(found != nullptr, "[{}] model_type must be one that this program knows; found {:?}; it knows {}",
                       file.string(), type, nearest(&Architecture::model_type, type));
  return *found;
}

std::vector<std::string> architecture_names() {
  std::vector<std::string> names;
  for (const auto& known : table()) names.push_back(known.name);
  return names;
}

}  // namespace lora::models
