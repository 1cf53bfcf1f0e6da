#include "lora/nn/loss.h"

#include <ATen/ATen.h>

#include "core/check.h"
#include "lora/nn/row_adapters.h"
#include "lora/ops/autocast.h"
#include "lora/ops/ops.h"

// Legend: B batch, S sequence, D model, V vocabulary, T targets.
namespace lora::nn {

Tensor causal_lm_loss_sum(CausalLMImpl& model, const Batch& batch) {
  const Tensor hidden_BSD = model.hidden(batch);
  const int64_t length = hidden_BSD.size(1);
  const Targets targets = batch.targets.defined() ? batch.targets : targets_of(batch.labels_BS);
  const Tensor states_ND = hidden_BSD.slice(1, 0, length - 1).reshape({-1, hidden_BSD.size(2)});
  const Tensor& labels_T = targets.label_T;
  if (labels_T.numel() == 0) return states_ND.sum() * 0;
  require<ShapeError>(targets.largest < model.vocab_size(), "[nn.loss] labels must be below the vocabulary's size, {}; found {}",
                      model.vocab_size(), targets.largest);

  const bool everywhere = labels_T.numel() == states_ND.size(0);
  const Tensor states_TD = everywhere ? states_ND : states_ND.index_select(0, targets.position_T);
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
