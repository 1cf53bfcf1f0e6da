#include "config/saved_method.h"

#include <array>
#include <optional>
#include <string_view>
#include <utility>

#include "formats/json.h"
#include "lora/core/error.h"
#include "lora/core/file.h"

namespace lora::config {
namespace {

/// PEFT's names of methods and ours.
constexpr std::array<std::pair<std::string_view, std::string_view>, 7> kMethods = {{{"LORA", "lora"},
                                                                                    {"ADALORA", "adalora"},
                                                                                    {"IA3", "ia3"},
                                                                                    {"TRAINABLE_TOKENS", "trainable_tokens"},
                                                                                    {"PREFIX_TUNING", "prefix"},
                                                                                    {"PROMPT_TUNING", "prompt"},
                                                                                    {"P_TUNING", "ptuning"}}};

/// A config without a peft_type is AdapterHub's.
std::optional<std::string> saved_method(const Path& directory) try {
  constexpr uint64_t kMostBytes = 16 << 20;
  const Path file = directory / "adapter_config.json";
  const formats::Json config = formats::parse_json(read_file(file, kMostBytes), file.string());
  const auto type = config.find("peft_type");
  if (type == config.end()) return "bottleneck";
  for (const auto& [peft, own] : kMethods) {
    if (*type == peft) return std::string(own);
  }
  return std::nullopt;
} catch (const Error&) {
  return std::nullopt;
}

void take_saved_method(AdapterSection& adapter, const std::string& section, const Places& places) {
  if (!adapter.init_from || places.contains(section + ".method")) return;
  if (auto method = saved_method(*adapter.init_from)) adapter.method = *std::move(method);
}

}  // namespace

void take_saved_methods(RunConfig& config, const Places& places) {
  take_saved_method(config.adapter, "adapter", places);
  for (auto& one : config.more_adapters) take_saved_method(one.adapter, "adapter.also." + one.name, places);
}

}  // namespace lora::config
