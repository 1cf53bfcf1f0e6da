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

/// `count` rows from `begin`, read into `examples`.
std::vector<const data::Example*> read_rows(const data::RowSource& rows, int64_t begin, int64_t count,
                                            std::vector<data::Example>& examples) {
  examples.resize(std::max(examples.size(), static_cast<size_t>(count)));
  std::vector<const data::Example*> chosen;
  for (int64_t i = 0; i < count; ++i) {
    data::Example& example = examples[static_cast<size_t>(i)];
    rows.read(begin + i, example);
    chosen.push_back(&example);
  }
  return chosen;
}

}  // namespace

EvalResult evaluate(nn::CausalLMImpl& model, const data::RowSource& rows, int64_t batch_size, const at::Device& device,
                    at::ScalarType amp_dtype, int64_t pad_id) {
  require<ConfigError>(batch_size >= 1, "[evaluate] batch_size must be at least 1; found {}; use 8", batch_size);
  // Not InferenceMode: tables that layers make now must serve training later.
  const at::NoGradGuard no_grad;
  const nn::EvalMode eval_mode(model);
  const AutocastGuard autocast(device.type(), amp_dtype);

  EvalResult result;
  at::Tensor loss_sum = at::zeros({}, at::TensorOptions(device).dtype(at::kDouble));  // a GPU is waited for once
  std::vector<data::Example> examples;
  for (int64_t begin = 0; begin < rows.size(); begin += batch_size) {
    const int64_t count = std::min(batch_size, rows.size() - begin);
    const auto chosen = read_rows(rows, begin, count, examples);
    const Batch batch = data::collate(chosen, pad_id, kPadMultiple, model.longest_row()).to(device);
    loss_sum += nn::causal_lm_loss_sum(model, batch);
    result.rows += count;
    result.targets += model.num_targets(batch);
  }
  if (result.targets > 0) result.loss = loss_sum.item<double>() / static_cast<double>(result.targets);
  return result;
}

}  // namespace lora::train
