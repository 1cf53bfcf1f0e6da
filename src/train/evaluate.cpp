#include "lora/train/evaluate.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <span>
#include <vector>

#include "core/check.h"
#include "lora/data/collate.h"
#include "lora/nn/loss.h"
#include "lora/ops/autocast.h"
#include "nn/eval_mode.h"

namespace lora::train {
namespace {

/// Few distinct shapes, see collate.
constexpr int64_t kPadMultiple = 8;

}  // namespace

EvalResult evaluate(nn::CausalLMImpl& model, const data::Dataset& dataset, int64_t batch_size,
                    const at::Device& device, at::ScalarType amp_dtype, int64_t pad_id) {
  require<ConfigError>(batch_size >= 1, "[evaluate] batch_size must be at least 1; found {}; use 8",
                       batch_size);
  // Not InferenceMode: tables that layers make now must serve training later.
  const at::NoGradGuard no_grad;
  const nn::EvalMode eval_mode(model);
  const AutocastGuard autocast(device.type(), amp_dtype);

  std::vector<const data::Example*> examples;
  for (const auto& example : dataset.examples) examples.push_back(&example);

  EvalResult result;
  at::Tensor loss_sum = at::zeros({}, at::TensorOptions(device).dtype(at::kDouble));  // a GPU is waited for once
  for (size_t begin = 0; begin < examples.size(); begin += static_cast<size_t>(batch_size)) {
    const size_t count = std::min(static_cast<size_t>(batch_size), examples.size() - begin);
    const Batch batch = data::collate(std::span(examples).subspan(begin, count), pad_id, kPadMultiple, model.max_positions()).to(device);
    loss_sum += nn::causal_lm_loss_sum(model, batch);
    result.rows += static_cast<int64_t>(count);
    result.targets += batch.num_targets;
  }
  if (result.targets > 0) result.loss = loss_sum.item<double>() / static_cast<double>(result.targets);
  return result;
}

}  // namespace lora::train
