#include "train/rehearsal.h"

#include <algorithm>
#include <vector>

// Legend: see step_sizes.h.
namespace lora::train {
namespace {

/// ops/linear_cross_entropy.cpp.
constexpr int64_t kChunkLogits = int64_t{1} << 23, kTrainedChunkTimes = 2, kGpuChunkLogits = int64_t{1} << 26,
                  kLeastChunkRows = 64;

/// One micro-batch after the other through every operation, with sizes for tensors. Follows models/llama/model.cpp,
/// models/glm/model.cpp, nn/linear_group.cpp and the operations' own files line by line.
class Rehearsal : private StepSizes {
 public:
  explicit Rehearsal(const MemoryInputs& inputs)
      : StepSizes(inputs), head_shape_{shapes.head}, head_{.shape = &head_shape_, .is_head = true} {
    bool has_gradient = shapes.embedding_trained || shapes.embedded_tokens > 0;
    for (const auto& shape : shapes.layers) {
      const Layer layer{{&shape.qkv},
                        {&shape.out},
                        {&shape.gate_up},
                        {&shape.down},
                        &shape.attention_adapters,
                        &shape.output_adapters,
                        shape.norms_trained,
                        shapes.prefixed_tokens > 0,
                        has_gradient,
                        {},
                        0};
      has_gradient = layer.output_has_gradient();
      layers_.push_back(layer);
    }
    output_has_gradient_ = has_gradient;
  }
  Rehearsal(const Rehearsal&) = delete;
  Rehearsal& operator=(const Rehearsal&) = delete;

  Rehearsed run() {
    load();
    // The first step packs the weights; the second meets all of them packed.
    for (int step = 0; step < 2; ++step) {
      gradients_exist_ = false;
      for (int64_t i = 0; i < std::min<int64_t>(in.grad_accum, 2); ++i) micro_batch();
      { const Scope updating(ledger_, kWeights, static_cast<int64_t>(in.parameters.update_bytes)); }
      ledger_.drop(kGradients, ledger_.now(kGradients));
    }
    save();
    return {ledger_, packed_, holes_};
  }

 private:
  // ---- Before the first step ----

  void load() {
    const auto& parameters = in.parameters;
    ledger_.hold(kWeights, static_cast<int64_t>(parameters.weights_bytes) - streamed_bytes());
    { const Scope converted(ledger_, kWeights, static_cast<int64_t>(in.loading_bytes)); }
    ledger_.hold(kWeights, static_cast<int64_t>(parameters.adapters_bytes + parameters.optimizer_bytes));
    if (in.streams_layers) ledger_.hold(kWeights, std::min<int64_t>(2, layer_count()) * streamed_bytes() / layer_count());
  }

  // ---- Products ----

  /// The weights of a product, packed when it is the first one with gradients.
  void multiply(Group& group, bool with_gradients) {
    if (group.is_in_few_bits()) {
      const Scope made(ledger_, kPacked, made_bytes(group));
    } else if (is_streamed(group)) {
      const Scope brought(ledger_, kPacked, can_pack(group) ? brought_bytes(group) : cast_bytes(group));
    } else if (can_pack(group) && (with_gradients || group.packed)) {
      if (!group.packed) pack(group);
    } else {
      const Scope cast(ledger_, kWeights, cast_bytes(group));
    }
  }

  void pack(Group& group) {
    const bool is_copied = group.shape->size() > 1 || is_converted();
    const Scope joined(ledger_, kPacked, is_copied ? form_bytes(group) : 0);
    ledger_.hold(kPacked, form_bytes(group));
    packed_ += form_bytes(group);
    group.packed = true;
    double& left = group.is_head ? holes_.by_head : holes_.by_layers;
    if (!is_released(group)) {
      left += is_copied ? hole_of_copies(form_bytes(group)) : 0;
      return;
    }
    const int64_t plain = group.numbers() * weight;
    ledger_.drop(kWeights, plain);
    packed_ -= plain;
    released_ += plain;
    left += static_cast<double>(plain);
  }

  /// The product with the transposed weights, which are made when first needed from the others.
  void multiply_transposed(Group& group) {
    if (group.is_in_few_bits()) {
      const Scope made(ledger_, kPacked, made_bytes(group));
    } else if (is_streamed(group) && can_pack(group)) {
      const Scope brought(ledger_, kPacked, brought_bytes(group) + form_bytes(group));
    } else if (is_streamed(group) || !group.packed) {
      multiply(group, false);
    } else if (!group.transposed) {
      const Scope plain(ledger_, kPacked, 2 * form_bytes(group));
      ledger_.hold(kPacked, form_bytes(group));
      packed_ += form_bytes(group);
      group.transposed = true;
    }
  }

  /// A product's input: until the scope's end, or where something trained needs it again for the backward pass.
  void hold_input(const Group& group, bool keep, int64_t& kept, Scope& flow) {
    hold(keep && needs_input(group), kept, N * group.inputs() * compute, flow);
    if (keep) hold_kept(kept, kept_beside_input(group));
    if (group.scales_inputs()) scale(N * group.inputs(), flow);
  }

  /// ops/scale_columns.cpp: the numbers that come out, and on the way wide ones.
  void scale(int64_t numbers, Scope& flow) {
    if (compute < 4) const Scope wide(ledger_, kActivations, 2 * numbers * 4);
    flow.hold(numbers * compute);
  }

  /// Adapters' scales of a group's outputs, whose place the scaled ones take: the plain ones stay for the scales' gradient.
  void scale_outputs(const Group& group, bool keep, int64_t& kept, Scope& flow) {
    if (!group.scales_outputs()) return;
    const int64_t numbers = N * group.outputs();
    { const Scope rows(ledger_, kActivations, group.rows_for_scales() * (group.inputs() + group.outputs()) * compute); }
    // Dropout multiplies a dropped input with weight and factors, each scaled by itself.
    hold(keep, kept, (group.dropouts() > 0 ? 2 : 1) * numbers * compute, flow);
    Scope scaled(ledger_);
    scale(numbers, scaled);
  }

  /// Outputs of layers that run one by one, or get an update by itself, exist apart before they stand side by side.
  void join_outputs(const Group& group) {
    const bool apart = (!is_joined(group) && group.shape->size() > 1) || group.dropouts() > 0;
    const Scope both(ledger_, kActivations, apart ? 2 * N * group.outputs() * compute : 0);
  }

  /// Gradients of what the group trains; from the second micro-batch on they are added to those that are there.
  void add_gradients(const Group& group) { add_gradients(group.gradient_bytes()); }

  void add_gradients(int64_t bytes) {
    if (gradients_exist_) {
      const Scope added(ledger_, kGradients, bytes);
    } else {
      ledger_.hold(kGradients, bytes);
    }
  }

  /// On the way back through a group's scales: the gradient that goes on, wide ones, and their product with the outputs.
  void scale_outputs_backward(const Group& group) {
    if (!group.scales_outputs()) return;
    const int64_t numbers = N * group.outputs();
    const Scope gradients(ledger_, kActivations, numbers * (compute + (compute < 4 ? 2 * 4 : 0) + 4));
  }

  /// Networks behind a block (adapters/bottleneck.cpp), each of which takes the block's output and gives another.
  void bottlenecks_forward(const Bottlenecks& adapters, bool keep, int64_t& kept) {
    for (const auto& adapter : adapters) {
      const int64_t state = N * D * compute, inner = N * adapter.size * compute;
      Scope flow(ledger_);
      const bool is_own = !adapter.reads_stream || stream != compute;  // else the norm keeps it, too
      hold(keep, kept, (is_own ? state : 0) + (adapter.drops ? state + N * D : 0), flow);
      if (keep) hold_kept(kept, compute < 4 ? adapter.numbers * compute : 0);  // weights as they are multiplied
      hold(keep, kept, inner * (adapter.keeps_before_activation ? 2 : 1), flow);
      if (keep && adapter.learns_scale) hold_kept(kept, state);
      flow.hold((adapter.learns_scale && keep ? 2 : 3) * state);  // the network's output, scaled, added
    }
  }

  void bottlenecks_backward(const Bottlenecks& adapters, int64_t& kept) {
    for (const auto& adapter : adapters) {
      const Scope gradients(ledger_, kActivations, N * (3 * D + 2 * adapter.size) * compute);
      add_gradients(adapter.numbers * 4);
    }
    release(kept);
  }

  // ---- Forward ----

  /// What the layer keeps goes into layer.kept when `keep` is set, and is gone at its end otherwise.
  void forward(Layer& layer, bool keep, bool with_gradients) {
    const bool recomputes_half = in.recompute == nn::Recompute::kSelective;
    Scope flow(ledger_);
    // What the layer before left to add; recomputation keeps it among the inputs.
    if (in.recompute != nn::Recompute::kFull) flow.hold(N * D * compute + normed_before_bytes(layer));
    attention_forward(layer, keep, with_gradients, flow);
    if (!recomputes_half) {
      feed_forward(layer, keep, with_gradients);
    } else {
      feed_forward(layer, false, false);
      if (keep) keep_inputs(layer);
    }
  }

  /// What recomputation begins with: the stream, which may be what the norm before keeps, and what is still to be added to
  /// it, of which a whole first layer has none.
  void keep_inputs(Layer& layer) {
    const bool has_more = in.recompute == nn::Recompute::kSelective || &layer != &layers_.front();
    const bool is_kept = shapes.adds_to_normed ? layer.kept.qkv > 0 && keeps_normed(layer.qkv) : layer.kept.norm1 > 0;
    hold_kept(layer.inputs_kept, N * D * ((is_kept ? 0 : stream) + (has_more ? compute : 0)));
  }

  void hold_kept(int64_t& kept, int64_t bytes) {
    kept += bytes;
    ledger_.hold(kActivations, bytes);
  }

  /// Keeps `bytes` for the backward pass when `needed`, else until the scope's end.
  void hold(bool needed, int64_t& kept, int64_t bytes, Scope& scope) {
    if (needed) {
      hold_kept(kept, bytes);
    } else {
      scope.hold(bytes);
    }
  }

  void norm_forward(bool keep, int64_t& kept, Scope& flow) {
    if (shapes.adds_to_normed) {
      norm_forward_to_stream(keep, kept, flow);
    } else {
      hold(keep, kept, norm_bytes(), flow);
    }
    if (!has_kernel(in.fast_paths.fused_norm)) const Scope wide(ledger_, kActivations, 3 * N * D * 4);
  }

  /// The sum is nobody else's, and what is added is converted for it. What comes out is the next sum's other part; of one type
  /// with the products it is the input that hold_input counts.
  void norm_forward_to_stream(bool keep, int64_t& kept, Scope& flow) {
    Scope summed(ledger_);
    if (stream != compute) summed.hold(N * D * stream);
    hold(keep, kept, norm_bytes(), summed);
    if (stream != compute) flow.hold(N * D * stream);
  }

  void attention_forward(Layer& layer, bool keep, bool with_gradients, Scope& flow) {
    const bool norm_keeps = keep && (layer.input_has_gradient || layer.norms_trained);
    norm_forward(norm_keeps, layer.kept.norm1, flow);
    const bool qkv_has_gradient = norm_keeps || layer.qkv.trains();
    hold_input(layer.qkv, keep && qkv_has_gradient, layer.kept.qkv, flow);
    multiply(layer.qkv, with_gradients);
    Scope inside(ledger_);
    join_outputs(layer.qkv);
    scale_outputs(layer.qkv, keep, layer.kept.qkv, inside);
    rearrange_heads();
    const bool attention_keeps = keep && layer.attention_has_gradient();
    if (!attends_joined()) {
      inside.hold(N * W * compute);
      if (attends_by_class()) inside.hold(P * W * compute);
      const bool is_joined_again = has_kernel(in.fast_paths.fused_attention) && (!layer.has_prefix || has_prefix_rows());
      if (is_joined_again) inside.hold(P * W * compute);  // heads apart, then joined again
    }
    hold(attention_keeps, layer.kept.attention, attention_bytes(), inside);
    // The out projection's input is attention's result; laid out anew when packed rows are attended to class by class.
    const bool out_keeps = keep && (attention_keeps || layer.out.trains());
    if (attends_by_class() || has_prefix_rows()) {
      const Scope joined(ledger_, kActivations, attends_by_class() ? P * Q * compute : 0);
      hold_input(layer.out, out_keeps, layer.kept.out, inside);
    } else if (out_keeps) {
      hold_kept(layer.kept.out, kept_beside_input(layer.out) + (attention_keeps ? 0 : N * Q * compute));
    }
    multiply(layer.out, with_gradients);
    flow.hold(N * D * compute);
    scale_outputs(layer.out, out_keeps, layer.kept.out, inside);
    bottlenecks_forward(*layer.after_attention, keep, layer.kept.after_attention);
  }

  /// The product as it stands and laid out anew; then the latter with virtual tokens' rows put in.
  void rearrange_heads() {
    if (!shapes.qkv_by_heads) return;
    { const Scope both(ledger_, kActivations, 2 * N * W * compute); }
    if (has_prefix_rows()) const Scope lengthened(ledger_, kActivations, (N + P) * W * compute);
  }

  /// The gradient of the layout anew, less its virtual tokens' rows, and as the product stands, whose place `dheads` takes.
  void rearrange_heads_backward(Scope& dheads) {
    if (!shapes.qkv_by_heads) return;
    { const Scope both(ledger_, kActivations, (has_prefix_rows() ? 2 : 1) * N * W * compute); }
    dheads.end();
    dheads.hold(N * W * compute);
  }

  void feed_forward(Layer& layer, bool keep, bool with_gradients) {
    const bool input_has_gradient = layer.half_has_gradient();
    Scope flow(ledger_);
    norm_forward(keep && input_has_gradient, layer.kept.norm2, flow);
    const bool gate_up_keeps = keep && (input_has_gradient || layer.gate_up.trains());
    hold_input(layer.gate_up, gate_up_keeps, layer.kept.gate_up, flow);
    multiply(layer.gate_up, with_gradients);
    join_outputs(layer.gate_up);
    scale_outputs(layer.gate_up, gate_up_keeps, layer.kept.gate_up, flow);
    hold(gate_up_keeps, layer.kept.activation, N * layer.gate_up.outputs() * compute, flow);
    const bool down_keeps = keep && (gate_up_keeps || layer.down.trains());
    hold_input(layer.down, down_keeps, layer.kept.down, flow);
    multiply(layer.down, with_gradients);
    flow.hold(N * D * compute);
    scale_outputs(layer.down, down_keeps, layer.kept.down, flow);
    bottlenecks_forward(*layer.after_feed_forward, keep, layer.kept.after_feed_forward);
  }

  // ---- The head and the loss ----

  void loss() {
    Scope flow(ledger_);
    hold(output_has_gradient_, final_norm_, norm_bytes(), flow);
    flow.hold(N * D * compute);                                                     // hidden states
    if (in.micro_batch > 1 || in.packed_rows || N > T) flow.hold(T * D * compute);  // of the targets alone
    if (N > T) flow.hold(T * D * compute);                                          // with those before first tokens
    flow.hold(T * 4 * 8);                                                           // labels, their places
    if (shapes.head.rank > 0 || shapes.head.dropouts > 0 || shapes.head_has_bias) {
      whole_logits();
    } else {
      logits_by_chunks();
    }
  }

  void whole_logits() {
    const int64_t logits = T * shapes.vocabulary;
    multiply(head_, true);
    // The logarithm of the softmax, its gradient and that of the logits, all fp32; the latter in the product's type, too.
    const Scope kept(ledger_, kLogits, logits * (3 * 4 + (compute < 4 ? compute : 0)));
    multiply_transposed(head_);
    add_gradients(head_);
  }

  void logits_by_chunks() {
    const int64_t V = shapes.vocabulary, on_cpu_most = kChunkLogits * (shapes.head.trained ? kTrainedChunkTimes : 1);
    const int64_t most = on_cpu() ? on_cpu_most : kGpuChunkLogits;
    const int64_t chunk_rows = std::max(kLeastChunkRows, most / V / kLeastChunkRows * kLeastChunkRows);
    const int64_t rows = std::min(chunk_rows, (T + kLeastChunkRows - 1) / kLeastChunkRows * kLeastChunkRows);
    if (output_has_gradient_) hold_kept(hidden_gradient_, T * D * compute);
    multiply(head_, true);
    Scope chunk(ledger_, kLogits);
    if (shapes.head.trained && shapes.head.dtype != compute_type) chunk.hold(head_.numbers() * compute);
    chunk.hold(rows * V * compute);
    if (!has_kernel(in.fast_paths.fused_loss)) chunk.hold(rows * V * (4 + (compute < 4 ? 4 : 0)));
    chunk.hold(2 * rows * D * compute);  // the rows, filled up, and their gradient
    if (output_has_gradient_) multiply_transposed(head_);
    if (shapes.head.trained) head_gradient(chunk, T > chunk_rows);
  }

  /// One chunk's gradient stays in the products' type, the sum of several is fp32; then both times the loss' gradient.
  void head_gradient(Scope& chunk, bool is_sum) {
    const int64_t part = head_.numbers() * compute, sum = is_sum ? head_.numbers() * 4 : part;
    const Scope made(ledger_, kGradients, sum);
    if (is_sum) const Scope added(ledger_, kGradients, compute < 4 ? 2 * part : part);
    chunk.end();
    const bool is_converted = sum != head_.numbers() * bytes_of(shapes.head.dtype);
    const Scope multiplied(ledger_, kGradients, is_converted ? sum : 0);
    add_gradients(head_);
  }

  // ---- Backward ----

  void micro_batch() {
    const Scope batch(ledger_, kActivations, T * 2 * 8);
    const Scope virtual_tokens(ledger_, kActivations, virtual_token_bytes());
    const Scope tables(ledger_, kActivations, rotary_bytes());
    for (Layer& layer : layers_) {
      if (in.recompute == nn::Recompute::kFull) {
        keep_inputs(layer);
        forward(layer, false, false);
      } else {
        forward(layer, true, true);
      }
    }
    loss();
    Scope gradient(ledger_, kActivations, gradient_bytes());
    { const Scope of_states(ledger_, kActivations, 2 * N * D * compute); }
    release(final_norm_);
    release(hidden_gradient_);
    for (size_t i = layers_.size(); i-- > 0;) backward(layers_[i]);
    if (shapes.prompt_numbers > 0) {
      const Scope of_tokens(ledger_, kActivations, virtual_token_bytes());
      add_gradients(shapes.prompt_numbers * 4);
    }
    embedding_gradient();
    gradients_exist_ = true;
  }

  void release(int64_t& kept) {
    ledger_.drop(kActivations, kept);
    kept = 0;
  }

  void backward(Layer& layer) {
    Scope again(ledger_);  // outputs of the second forward pass: the result, and the sum that the norm before it keeps, too
    if (in.recompute == nn::Recompute::kFull) {
      forward(layer, true, true);
    } else if (in.recompute == nn::Recompute::kSelective) {
      feed_forward(layer, true, true);
    }
    if (in.recompute != nn::Recompute::kNone) again.hold(N * D * compute + beside_result_bytes(layer));
    feed_forward_backward(layer);
    if (in.recompute == nn::Recompute::kFull) again.hold(N * D * stream);
    if (in.recompute == nn::Recompute::kSelective) {
      again.end();
      release(layer.inputs_kept);
    }
    attention_backward(layer);
    release(layer.inputs_kept);
  }

  void feed_forward_backward(Layer& layer) {
    const bool reaches_norm = layer.half_has_gradient();
    const bool reaches_activation = reaches_norm || layer.gate_up.trains();
    const int64_t inner = layer.down.inputs();
    Scope dresult(ledger_, kActivations, result_gradient_bytes());
    bottlenecks_backward(*layer.after_feed_forward, layer.kept.after_feed_forward);
    scale_outputs_backward(layer.down);
    Scope dh(ledger_);
    if (reaches_activation) {
      dh.hold(N * inner * compute);
      multiply_transposed(layer.down);
    }
    add_gradients(layer.down);
    dresult.end();
    release(layer.kept.down);
    Scope dgate_up(ledger_);
    if (reaches_activation) dgate_up.hold(N * layer.gate_up.outputs() * compute);
    dh.end();
    release(layer.kept.activation);
    scale_outputs_backward(layer.gate_up);
    Scope dy(ledger_);
    if (reaches_norm) {
      dy.hold(N * D * compute);
      multiply_transposed(layer.gate_up);
    }
    add_gradients(layer.gate_up);
    dgate_up.end();
    release(layer.kept.gate_up);
    if (reaches_norm) norm_backward(layer, dy);
    release(layer.kept.norm2);
  }

  void attention_backward(Layer& layer) {
    const bool reaches_norm = layer.input_has_gradient || layer.norms_trained;
    const bool reaches_attention = layer.attention_has_gradient();
    Scope dresult(ledger_, kActivations, result_gradient_bytes());
    bottlenecks_backward(*layer.after_attention, layer.kept.after_attention);
    scale_outputs_backward(layer.out);
    Scope dout(ledger_);
    if (reaches_attention) {
      dout.hold(N * Q * compute);
      multiply_transposed(layer.out);
      if (attends_by_class() || has_prefix_rows()) dout.hold(P * Q * compute);
    }
    add_gradients(layer.out);
    dresult.end();
    release(layer.kept.out);
    Scope dheads(ledger_);
    if (reaches_attention) {
      dheads.hold(layer.has_prefix && !has_prefix_rows() ? prefixed_gradient_bytes() : P * W * compute);
      const Scope block(ledger_, kActivations, attention_block_bytes());
    }
    dout.end();
    release(layer.kept.attention);
    Scope dqkv(ledger_);
    if (!attends_joined()) {  // else those of the heads stand side by side already
      if (reaches_attention) dqkv.hold(P * W * compute + (attends_by_class() ? N * W * compute : 0));
      dheads.end();
    }
    if (reaches_attention) rearrange_heads_backward(attends_joined() ? dheads : dqkv);
    scale_outputs_backward(layer.qkv);
    if (reaches_norm) {
      dqkv.hold(N * D * compute);
      multiply_transposed(layer.qkv);
    }
    add_gradients(layer.qkv);
    release(layer.kept.qkv);
    if (reaches_norm) norm_backward(layer, dqkv);
    release(layer.kept.norm1);
  }

  /// The gradient of the sum; before it those of a layer norm's own weights, made of wide numbers.
  void norm_backward(const Layer& layer, Scope& flow) {
    if (shapes.layer_norms && layer.norms_trained) const Scope wide(ledger_, kActivations, (stream < 4 ? 2 : 1) * N * D * 4);
    flow.hold(gradient_bytes());
  }

  /// Dense, whatever few rows were used; a tied head's gradient has waited for it.
  void embedding_gradient() {
    if (!shapes.embedding_table_trained) return;
    const int64_t bytes = shapes.vocabulary * D * stream;
    if (shapes.head_is_tied && shapes.head.trained) {
      const Scope added(ledger_, kGradients, bytes);
    } else {
      add_gradients(bytes);
    }
  }

  // ---- After the last step ----

  /// Saving the base asks for all plain weights again.
  void save() {
    if (in.saves_base) ledger_.hold(kWeights, released_);
  }

  const nn::LinearGroupShape head_shape_;
  Group head_;
  std::vector<Layer> layers_;
  bool output_has_gradient_ = false;
  bool gradients_exist_ = false;  ///< of an earlier micro-batch of this step
  int64_t final_norm_ = 0, hidden_gradient_ = 0;
  int64_t packed_ = 0, released_ = 0;
  PackingHoles holes_;
  Ledger ledger_;
};

}  // namespace

Rehearsed rehearse(const MemoryInputs& inputs) { return Rehearsal(inputs).run(); }

}  // namespace lora::train
