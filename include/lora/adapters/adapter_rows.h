#pragma once

#include <torch/nn/module.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "lora/nn/row_adapters.h"

namespace lora {

/// The name of no adapter at all: a row that the base model serves alone.
constexpr std::string_view kBaseRows = "__base__";

/// While one is alive, every row of the model's batches has an adapter of its own, on this thread:
///
///   const AdapterRows rows(model, {"french", "german", "__base__"});
///   const at::Tensor logits = model.forward(batch_of_three);
///
/// The base product is made once for the whole batch, and each adapter's update is added to its
/// rows: the same as running every row with its adapter active. Which adapters are active otherwise
/// does not matter meanwhile, and stays as it was. For inference: the model is in evaluation mode,
/// nothing is merged, the adapters are LoRA and train no parameter whole. Adapters may not be
/// attached or removed meanwhile. What PEFT calls adapter_names.
class AdapterRows {
 public:
  /// One name per row. Throws ConfigError for a name that the model does not have and for what does
  /// not hold (see above).
  AdapterRows(torch::nn::Module& model, const std::vector<std::string>& names);
  AdapterRows(const AdapterRows&) = delete;
  AdapterRows& operator=(const AdapterRows&) = delete;

 private:
  std::unique_ptr<nn::RowAdapters> rows_;
};

}  // namespace lora
