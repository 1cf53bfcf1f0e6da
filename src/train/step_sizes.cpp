#include "train/step_sizes.h"

#include <algorithm>

#include "lora/ops/ops.h"

namespace lora::train {
namespace {

/// ops/sequence_attention.cpp.
constexpr int64_t kAttentionQueries = 64, kAttentionKeys = 512;

}  // namespace

StepSizes::StepSizes(const MemoryInputs& inputs)
    : in(inputs),
      shapes(inputs.shapes),
      stream(bytes_of(shapes.stream_dtype)),
      compute_type(inputs.amp_dtype == at::kFloat ? shapes.stream_dtype : inputs.amp_dtype),
      compute(bytes_of(compute_type)),
      weight(bytes_of(shapes.weight_dtype)),
      T(tokens()),
      N(T + sequences() * shapes.embedded_tokens),
      P(places()),
      D(shapes.hidden),
      Q(shapes.heads * shapes.head_dim),
      W((shapes.heads + 2 * shapes.kv_heads) * shapes.head_dim) {}

int64_t StepSizes::tokens() const {
  const int64_t all = in.micro_batch * in.row_tokens;
  return in.packed_rows ? (all + 63) / 64 * 64 : all;
}

int64_t StepSizes::sequences() const {
  return in.packed_rows ? static_cast<int64_t>(in.sequences_per_row * static_cast<double>(in.micro_batch)) : in.micro_batch;
}

int64_t StepSizes::places() const {
  const int64_t all = tokens() + sequences() * (shapes.embedded_tokens + (has_prefix_rows() ? shapes.prefixed_tokens : 0));
  return attends_by_class() ? static_cast<int64_t>(static_cast<double>(all) * in.places_per_token) : all;
}

int64_t StepSizes::longest() const {
  return (in.longest_sequence > 0 ? in.longest_sequence : in.row_tokens) + shapes.embedded_tokens +
         (has_prefix_rows() ? shapes.prefixed_tokens : 0);
}

bool StepSizes::has_kernel(bool wanted) const {
  return wanted && on_cpu() && compute_type != at::kHalf && shapes.stream_dtype != at::kHalf;
}

bool StepSizes::can_pack(const Group& group) const {
  return on_cpu() && in.packing_pays && in.fast_paths.packed_weights && is_joined(group);
}

bool StepSizes::is_released(const Group& group) const {
  return in.fast_paths.release_plain && !is_converted() && !(group.is_head && shapes.head_is_tied);
}

int64_t StepSizes::streamed_bytes() const {
  int64_t numbers = 0;
  for (const auto& layer : shapes.layers) {
    for (const auto* shape : {&layer.qkv, &layer.out, &layer.gate_up, &layer.down}) {
      const Group group{shape};
      if (is_streamed(group)) numbers += group.numbers();
    }
  }
  return numbers * weight;
}

int64_t StepSizes::made_bytes(const Group& group) const {
  int64_t numbers = 0;
  for (const auto& layer : *group.shape)
    numbers = is_joined(group) ? numbers + layer.numbers() : std::max(numbers, layer.numbers());
  const bool is_straight = shapes.weight_dtype == at::kFloat || !is_converted();
  return numbers * ((is_straight ? compute : weight + compute) + (on_cpu() && compute < 4 ? compute : 0));
}

int64_t StepSizes::cast_bytes(const Group& group) const {
  if (!is_converted()) return 0;
  int64_t largest = 0;
  for (const auto& layer : *group.shape) largest = std::max(largest, layer.numbers());
  return largest * compute;
}

bool StepSizes::needs_input(const Group& group) const {
  const bool recomputes = group.is_in_few_bits() && !is_joined(group);  // LinearImpl::base_forward
  return group.has_trained_weight() || group.ranks() > 0 || group.scales_inputs() || recomputes;
}

int64_t StepSizes::kept_beside_input(const Group& group) const {
  int64_t bytes = N * group.ranks() * compute + group.dropouts() * N * group.inputs() * compute;
  if (is_joined(group)) bytes += factor_bytes(group);
  for (const auto& layer : *group.shape) bytes += layer.products_of_factors * 4;
  if (group.has_trained_weight() && shapes.stream_dtype != compute_type) bytes += group.numbers() * compute;
  return bytes;
}

int64_t StepSizes::factor_bytes(const Group& group) const {
  int64_t numbers = 0, updates = 0;
  for (const auto& layer : *group.shape) {
    if (layer.rank == 0 || layer.dropouts > 0) continue;
    ++updates;
    numbers += layer.rank * layer.out;
  }
  if (updates > 1 || compute < 4) {
    for (const auto& layer : *group.shape) numbers += layer.dropouts > 0 ? 0 : layer.rank * layer.in;
  }
  return numbers * compute;
}

int64_t StepSizes::normed_before_bytes(const Layer& layer) const {
  const bool is_kept = in.recompute == nn::Recompute::kNone && keeps_normed(layer.gate_up);
  return shapes.adds_to_normed && !is_kept ? N * D * stream : 0;
}

bool StepSizes::attends_joined() const {
  const bool has_keys_apart = shapes.prefixed_tokens > 0 && !has_prefix_rows();
  return !has_keys_apart && has_kernel(in.fast_paths.fused_rotary && in.fast_paths.fused_attention);
}

bool StepSizes::attends_by_class() const {
  const bool by_bounds = shapes.prefixed_tokens == 0 && ops::attends_by_bounds(in.device, compute_type, shapes.head_dim);
  return in.packed_rows && !attends_joined() && !by_bounds && !shapes.qkv_by_heads;
}

int64_t StepSizes::attention_bytes() const {
  if (shapes.prefixed_tokens > 0 && !has_prefix_rows()) return prefixed_attention_bytes();
  int64_t width = W + Q;
  if (!has_kernel(in.fast_paths.fused_attention)) {
    if (!has_kernel(in.fast_paths.fused_rotary)) width += W - (W - Q) / 2;  // values are a part of the whole product
    const bool shares_heads = !on_cpu() && compute == 2;                    // ops/causal_attention.cpp
    if (shapes.heads != shapes.kv_heads && !shares_heads) width += 2 * Q;
    // ops/prefix_attention.cpp: of all, and of the context, which is taken to be half of a row.
    if (shapes.qkv_by_heads) width += Q + Q / 2;
  }
  return P * width * compute + P * shapes.heads * 4;
}

int64_t StepSizes::prefixed_attention_bytes() const {
  const int64_t keys = P + sequences() * shapes.prefixed_tokens, length = longest();
  const int64_t mask = length * (shapes.prefixed_tokens + length);
  return (2 * P * Q + 2 * keys * Q + mask) * compute + P * shapes.heads * 4;
}

int64_t StepSizes::virtual_token_bytes() const {
  const int64_t keys = shapes.prefixed_tokens * 2 * layer_count() * shapes.kv_heads * shapes.head_dim;
  const int64_t turned = has_prefix_rows() ? keys / 2 * compute : 0;  // the keys in pairs
  return (shapes.embedded_tokens > 0 ? N * D * stream : 0) + keys * (4 + (compute < 4 ? compute : 0)) + turned;
}

int64_t StepSizes::beside_result_bytes(const Layer& layer) const {
  if (!shapes.adds_to_normed) return 0;
  return N * D * (keeps_normed(layer.gate_up) ? 0 : stream) + result_gradient_bytes();
}

int64_t StepSizes::attention_block_bytes() const {
  if (!has_kernel(in.fast_paths.fused_attention)) return 0;
  const int64_t length = longest();
  const int64_t head = length * shapes.head_dim, block = kAttentionQueries * std::min(length, kAttentionKeys);
  return head * (3 * compute + 2 * 4) + block * (3 * compute + 2 * 4);
}

}  // namespace lora::train
