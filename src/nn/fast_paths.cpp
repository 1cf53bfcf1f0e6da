#include "lora/nn/fast_paths.h"

#include <array>
#include <utility>

#include "core/check.h"

namespace lora::nn {
namespace {

constexpr std::array<std::pair<std::string_view, bool FastPaths::*>, 9> kSwitches = {{
    {"joined", &FastPaths::joined},
    {"packed_weights", &FastPaths::packed_weights},
    {"fused_norm", &FastPaths::fused_norm},
    {"fused_rotary", &FastPaths::fused_rotary},
    {"fused_swiglu", &FastPaths::fused_swiglu},
    {"fused_attention", &FastPaths::fused_attention},
    {"fused_loss", &FastPaths::fused_loss},
    {"recorded_step", &FastPaths::recorded_step},
    {"release_plain", &FastPaths::release_plain},
}};

}  // namespace

std::vector<std::string> FastPaths::names() {
  std::vector<std::string> names;
  for (const auto& [name, member] : kSwitches) names.emplace_back(name);
  return names;
}

bool& FastPaths::at(std::string_view name) {
  for (const auto& [known, member] : kSwitches) {
    if (known == name) return this->*member;
  }
  fail<ConfigError>("[fast_paths] a name must be one of {}; found {:?}", fmt::join(names(), ", "), name);
}

}  // namespace lora::nn
