#include "lora/generate/score.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "core/check.h"
#include "generate/check_tokens.h"
#include "lora/data/collate.h"
#include "nn/eval_mode.h"

// Legend: B batch, S sequence, D model, V vocabulary, N predictions of a batch.
namespace lora::generate {
namespace {

/// Bytes of the fp32 logits that exist at a time; their log-softmax takes as many again.
constexpr int64_t kLogitBytes = int64_t{32} << 20;

/// Where a batch predicts, as indexes into (B * S) positions, and which tokens follow there.
struct Predictions {
  at::Tensor positions_N, next_ids_N;
};

int64_t num_predictions(const data::Example& example) { return static_cast<int64_t>(example.input_ids.size()) - 1; }

Predictions predictions_of(std::span<const data::Example* const> examples, int64_t length) {
  std::vector<int64_t> positions, next_ids;
  for (size_t b = 0; b < examples.size(); ++b) {
    const auto& ids = examples[b]->input_ids;
    next_ids.insert(next_ids.end(), ids.begin() + 1, ids.end());
    for (int64_t i = 0; i < num_predictions(*examples[b]); ++i) {
      positions.push_back(static_cast<int64_t>(b) * length + i);
    }
  }
  return {at::tensor(positions, at::kLong), at::tensor(next_ids, at::kLong)};
}

/// log p of each prediction's next token, on the CPU. The output head sees a slice of the
/// predictions at a time: all logits of a batch may be larger than the model.
at::Tensor logprobs_of(nn::CausalLMImpl& model, const at::Tensor& hidden_BSD, const Predictions& predictions) {
  const at::Tensor positions_N = predictions.positions_N.to(hidden_BSD.device());
  const at::Tensor next_ids_N = predictions.next_ids_N.to(hidden_BSD.device());
  const at::Tensor states_ND = hidden_BSD.flatten(0, 1).index_select(0, positions_N);
  const int64_t total = states_ND.size(0);
  const int64_t slice = std::max<int64_t>(1, kLogitBytes / (4 * model.vocab_size()));
  std::vector<at::Tensor> parts;
  for (int64_t begin = 0; begin < total; begin += slice) {
    const int64_t end = std::min(begin + slice, total);
    const at::Tensor logits_NV = model.logits_of(states_ND.slice(0, begin, end)).to(at::kFloat);
    const at::Tensor chosen_N1 = next_ids_N.slice(0, begin, end).unsqueeze(1);
    parts.push_back(at::log_softmax(logits_NV, 1).gather(1, chosen_N1).squeeze(1));
  }
  return at::cat(parts).to(at::kCPU);
}

RowScore row_score(const data::Example& example, const float* logprobs) {
  RowScore result;
  result.logprobs.assign(logprobs, logprobs + num_predictions(example));
  for (size_t i = 0; i < result.logprobs.size(); ++i) {
    if (example.labels[i + 1] == kIgnoreLabel) continue;
    result.sum_logprob += result.logprobs[i];
    ++result.num_targets;
  }
  if (result.num_targets > 0) {
    result.loss = -result.sum_logprob / static_cast<double>(result.num_targets);
  }
  return result;
}

void score_batch(nn::CausalLMImpl& model, std::span<const data::Example* const> examples, const at::Device& device,
                 std::vector<RowScore>& scores) {
  const Batch batch = data::collate(examples, /*pad_id=*/0);
  const Predictions predictions = predictions_of(examples, batch.input_ids_BS.size(1));
  at::Tensor logprobs_N = at::empty({0}, at::kFloat);
  if (predictions.positions_N.numel() > 0) {
    logprobs_N = logprobs_of(model, model.hidden(batch.to(device)), predictions);
  }
  const float* next = logprobs_N.const_data_ptr<float>();
  for (const data::Example* example : examples) {
    scores.push_back(row_score(*example, next));
    next += num_predictions(*example);
  }
}

}  // namespace

std::vector<RowScore> score(nn::CausalLMImpl& model, std::span<const data::Example> examples, int64_t batch_size,
                            const at::Device& device) {
  require<ConfigError>(batch_size >= 1, "[batch_size] must be at least 1; found {}", batch_size);
  std::vector<const data::Example*> rows;
  rows.reserve(examples.size());
  for (const data::Example& example : examples) {
    check_tokens(model, example.input_ids, fmt::format("row {}", example.row));
    rows.push_back(&example);
  }
  const at::NoGradGuard no_gradients;
  const nn::EvalMode eval_mode(model);
  std::vector<RowScore> scores;
  scores.reserve(rows.size());
  for (size_t begin = 0; begin < rows.size(); begin += static_cast<size_t>(batch_size)) {
    const size_t count = std::min(rows.size() - begin, static_cast<size_t>(batch_size));
    score_batch(model, std::span(rows).subspan(begin, count), device, scores);
  }
  return scores;
}

}  // namespace lora::generate
