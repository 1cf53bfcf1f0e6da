// The fixtures of tests/reference/peft and what tests of parity do with them.
#pragma once

#include <ATen/ATen.h>
#include <torch/utils.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "catch.h"
#include "formats/json.h"
#include "lora/adapters/adapter_set.h"
#include "lora/core/file.h"
#include "lora/io/safetensors.h"
#include "lora/models/llama.h"
#include "lora/train/step.h"

namespace lora::testing::peft {

inline Path reference() { return Path(std::getenv("LORA_SOURCE_DIR")) / "tests/reference/peft"; }

inline double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  REQUIRE(a.sizes() == b.sizes());
  return a.numel() == 0 ? 0 : (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

inline std::shared_ptr<llama::LlamaForCausalLMImpl> load_base(const std::string& name, at::ScalarType dtype = at::kFloat) {
  return llama::load(reference() / name, {.device = at::kCPU, .dtype = dtype});
}

/// The fixtures' two rows, the second padded by three.
inline Batch fixture_batch() {
  const auto tensors = io::load_safetensors(reference() / "base/batch.safetensors");
  Batch batch;
  batch.input_ids_BS = tensors.at("input_ids");
  batch.labels_BS = tensors.at("labels");
  batch.attention_mask_BS = tensors.at("attention_mask");
  batch.num_tokens = batch.attention_mask_BS.sum().item<int64_t>();
  batch.num_targets = (batch.labels_BS.slice(1, 1) != kIgnoreLabel).sum().item<int64_t>();
  return batch;
}

inline formats::Json expected_json(const std::string& name) {
  const Path file = reference() / name / "expected.json";
  return formats::parse_json(read_file(file), file.string());
}

inline train::StepState make_state(const AdapterSet& adapters, const std::vector<std::pair<std::string, at::Tensor>>& parameters,
                                   double lr) {
  train::StepState state;
  state.options.clip_norm = 0;
  state.schedule.lr = lr;
  state.schedule.total_steps = 10;
  state.adapters = adapters;
  const train::OptimizerOptions options{.lr = lr, .weight_decay = 0.01, .no_decay = {}};
  state.optimizer = train::make_optimizer(train::parameter_groups(parameters, options), options);
  return state;
}

/// Which optimisations run, and whether the batch carries its mask: right padding needs none, and plain causal
/// attention has a path of its own.
struct Setting {
  nn::FastPaths fast = {};
  bool masked = true;
};

}  // namespace lora::testing::peft
