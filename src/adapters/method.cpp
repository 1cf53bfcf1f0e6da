#include "lora/adapters/method.h"

#include "core/overloaded.h"

namespace lora {

std::string method_name(const MethodOptions& options) {
  return std::visit(
      Overloaded{[](const LoraOptions& lora) { return lora.dora              ? "dora"
                                                      : lora.rank_stabilized ? "rslora"
                                                                             : "lora"; },
                 [](const AdaLoraOptions&) { return "adalora"; }, [](const Ia3Options&) { return "ia3"; },
                 [](const PrefixOptions&) { return "prefix"; }, [](const PromptOptions&) { return "prompt"; },
                 [](const PTuningOptions&) { return "ptuning"; }, [](const BottleneckOptions&) { return "bottleneck"; },
                 [](const TrainableTokensOptions&) { return "trainable_tokens"; }},
      options);
}

const std::string& base_model_name(const MethodOptions& options) {
  return std::visit([](const auto& method) -> const std::string& { return method.base_model_name; }, options);
}

void set_base_model_name(MethodOptions& options, const std::string& name) {
  std::visit([&](auto& method) { method.base_model_name = name; }, options);
}

}  // namespace lora
