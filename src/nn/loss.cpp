#include "lora/nn/loss.h"

#include <ATen/ATen.h>

#include "core/check.h"
#include "lora/nn/row_adapters.h"
#include "lora/ops/autocast.h"
#include "lora/ops/ops.h"

// Legend: B batch, S sequence, D model, V vocabulary, T targets.
namespace lora::nn {
namespace {

/// Rows of `states_ND` by number; as they are where all are asked for.
Tensor chosen_rows(const Tensor& states_ND, const Tensor& numbers_T) {
  return numbers_T.numel() == states_ND.size(0) ? states_ND : states_ND.index_select(0, numbers_T);
}

/// States that predict a target, and what follows them.
struct Predictions {
  Tensor states_TD, labels_T;
};

Predictions predictions_of(const PredictingStates& states, const Targets& targets) {
  const Tensor& hidden_BSD = states.hidden_BSD;
  const Tensor with_successor_ND = hidden_BSD.slice(1, 0, hidden_BSD.size(1) - 1).reshape({-1, hidden_BSD.size(2)});
  const Predictions later{chosen_rows(with_successor_ND, targets.position_T), targets.label_T};
  if (!states.before_ND.defined() || targets.first_F.numel() == 0) return later;
  return {at::cat({later.states_TD, chosen_rows(states.before_ND, targets.first_F)}),
          at::cat({later.labels_T, targets.first_label_F})};
}

}  // namespace

Tensor causal_lm_loss_sum(CausalLMImpl& model, const Batch& batch) {
  const PredictingStates states = model.predicting_states(batch);
  const Targets targets = batch.targets.defined() ? batch.targets : targets_of(batch);
  const auto [states_TD, labels_T] = predictions_of(states, targets);
  if (labels_T.numel() == 0) return states.hidden_BSD.sum() * 0;
  require<ShapeError>(targets.largest < model.vocab_size(), "[nn.loss] labels must be below the vocabulary's size, {}; found {}",
                      model.vocab_size(), targets.largest);

  Linear head = model.head();
  if (head->slot.contributing().empty() && !head->bias.defined() && !rows_are_chosen(head->slot)) {
    std::shared_ptr<const ops::PackedWeight> packed;
    const auto dtype = compute_dtype(states_TD.device().type(), states_TD.scalar_type());
    if (model.head_group() != nullptr) packed = model.head_group()->packed_for(dtype, model.fast_paths);
    if (!packed) head->restore_weight();
    return ops::linear_cross_entropy_sum(states_TD, head->weight, labels_T, packed, model.fast_paths.fused_loss);
  }
  // An adapted head has no single weight: its logits are made whole, for the labelled rows only.
  const Tensor logits_TV = head->forward(states_TD);
  const auto wide = logits_TV.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return at::cross_entropy_loss(logits_TV.to(wide), labels_T, {}, at::Reduction::Sum);
}

}  // namespace lora::nn
