#include "lora/train/memory_plan.h"

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "lora/adapters/fused_rows.h"
#include "lora/nn/linear.h"
#include "lora/ops/ops.h"

// Legend: N tokens of a micro-batch, P places of attention (N without packed rows and virtual tokens' rows), D model, H heads, K
// head size, Q width of all query heads, W of queries, keys and values, F feed-forward, V vocabulary, R rank, T real tokens,
// without the virtual ones that N counts.
namespace lora::train {
namespace {

using nn::LinearGroupShape;
using nn::LinearShape;

int64_t bytes_of(at::ScalarType type) { return static_cast<int64_t>(c10::elementSize(type)); }

bool is_half(at::ScalarType type) { return type == at::kHalf || type == at::kBFloat16; }

// ---- Measured, since no arithmetic gives them; benchmarks/plan_check.py shows how well they hold ----

constexpr int64_t kMiB = int64_t{1} << 20;
/// The program with LibTorch after a run of almost nothing.
constexpr int64_t kProgramBytes = 150 * kMiB;
/// What LibTorch's fp32 products on the CPU keep for themselves: so many times the largest weight, up to a limit.
constexpr int64_t kWideProductTimes = 3, kWideProductLimit = 45 * kMiB;
/// A CUDA context with LibTorch's kernels.
constexpr int64_t kContextBytes = 600 * kMiB;
/// From here on tensors are aligned to pages, for which the C library's heap asks for a page more than they have: none fits
/// into the hole that one of its size left, but smaller ones do.
constexpr int64_t kLargeTensor = 2 * kMiB;
/// Shares of freed memory that find no use again: of the joined or converted copies of weights that packing makes on its
/// way, of what all layers make, of what adapters that drop inputs make beside it, and of the gradients.
constexpr double kKeptOfCopies = 0.5, kKeptOfLayers = 0.6, kKeptOfDropouts = 0.25, kKeptOfGradients = 0.4;
/// Of what all layers make where weights are made out of few bits for each product: those find room in the holes, too.
constexpr double kKeptOfLayersInFewBits = 0.4;
/// The same when gradients of earlier micro-batches lie between them.
constexpr double kKeptOfLayersAccumulated = 0.9, kKeptOfGradientsAccumulated = 1;
/// How many layers' recomputed tensors find their room no more, at least, and as a share of all layers where something that
/// stays was put between them: between whole layers, or between halves beside halves that stay.
constexpr double kRecomputedLayers = 2, kRecomputedShare = 0.6, kRecomputedHalves = 1;

// ---- Sizes that the operations themselves choose ----

/// ops/linear_cross_entropy.cpp.
constexpr int64_t kChunkLogits = int64_t{1} << 23, kTrainedChunkTimes = 2, kGpuChunkLogits = int64_t{1} << 26,
                  kLeastChunkRows = 64;
/// ops/sequence_attention.cpp.
constexpr int64_t kAttentionQueries = 64, kAttentionKeys = 512;

enum Kind : size_t { kWeights, kPacked, kGradients, kActivations, kLogits, kKinds };

/// What exists now, and the most that ever did.
class Ledger {
 public:
  void hold(Kind kind, int64_t bytes) {
    now_[kind] += bytes;
    live_ += bytes;
    most_[kind] = std::max(most_[kind], now_[kind]);
    peak_ = std::max(peak_, live_);
  }
  void drop(Kind kind, int64_t bytes) {
    now_[kind] -= bytes;
    live_ -= bytes;
  }
  int64_t now(Kind kind) const { return now_[kind]; }
  int64_t most(Kind kind) const { return most_[kind]; }
  int64_t peak() const { return peak_; }

 private:
  std::array<int64_t, kKinds> now_ = {}, most_ = {};
  int64_t live_ = 0, peak_ = 0;
};

/// Tensors of a scope, gone at its end.
class Scope {
 public:
  explicit Scope(Ledger& ledger, Kind kind = kActivations) : ledger_(ledger), kind_(kind) {}
  Scope(Ledger& ledger, Kind kind, int64_t bytes) : Scope(ledger, kind) { hold(bytes); }
  ~Scope() { end(); }
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

  void hold(int64_t bytes) {
    ledger_.hold(kind_, bytes);
    bytes_ += bytes;
  }
  void end() {
    ledger_.drop(kind_, bytes_);
    bytes_ = 0;
  }

 private:
  Ledger& ledger_;
  Kind kind_;
  int64_t bytes_ = 0;
};

/// A group of linear layers and the packed forms that it has by now.
struct Group {
  const LinearGroupShape* shape;
  bool is_head = false;
  bool packed = false, transposed = false;

  int64_t numbers() const {
    int64_t sum = 0;
    for (const auto& layer : *shape) sum += layer.numbers();
    return sum;
  }
  int64_t inputs() const { return shape->front().in; }
  int64_t outputs() const {
    int64_t sum = 0;
    for (const auto& layer : *shape) sum += layer.out;
    return sum;
  }
  int64_t ranks() const {
    int64_t sum = 0;
    for (const auto& layer : *shape) sum += layer.rank;
    return sum;
  }
  bool has_trained_weight() const {
    return std::ranges::any_of(*shape, [](const LinearShape& layer) { return layer.trained; });
  }
  bool trains() const {
    return std::ranges::any_of(*shape, [](const LinearShape& layer) { return layer.trained || layer.adapter_trained; });
  }
  bool is_in_few_bits() const {
    return std::ranges::any_of(*shape, [](const LinearShape& layer) { return layer.few_bits.has_value(); });
  }
  int64_t rows_for_scales() const {
    int64_t sum = 0;
    for (const auto& layer : *shape) sum += layer.rows_for_scales;
    return sum;
  }
  bool scales_outputs() const {
    return std::ranges::any_of(*shape, [](const LinearShape& layer) { return layer.output_scaled; });
  }
  bool scales_inputs() const {
    return std::ranges::any_of(*shape, [](const LinearShape& layer) { return layer.input_scaled; });
  }
  /// Gradients of what trains: of adapters in fp32, of weights in their own type.
  int64_t gradient_bytes() const {
    int64_t sum = 0;
    for (const auto& layer : *shape) {
      if (layer.trained) sum += layer.numbers() * bytes_of(layer.dtype);
      sum += layer.adapter_numbers * 4;
    }
    return sum;
  }
};

/// What one layer's operations keep for the backward pass.
struct Kept {
  int64_t norm1 = 0, qkv = 0, attention = 0, out = 0, after_attention = 0, norm2 = 0, gate_up = 0, activation = 0, down = 0,
          after_feed_forward = 0;
};

using Bottlenecks = std::vector<nn::BottleneckShape>;

struct Layer {
  Group qkv, out, gate_up, down;
  const Bottlenecks *after_attention, *after_feed_forward;
  bool norms_trained = false;
  bool has_prefix = false;
  bool input_has_gradient = false;  ///< something below it trains

  bool attention_has_gradient() const { return input_has_gradient || norms_trained || has_prefix || qkv.trains(); }
  bool half_has_gradient() const { return attention_has_gradient() || out.trains() || !after_attention->empty(); }
  bool output_has_gradient() const {
    return half_has_gradient() || gate_up.trains() || down.trains() || !after_feed_forward->empty();
  }
  Kept kept;
  int64_t inputs_kept = 0;  ///< by recomputation
};

/// One micro-batch after the other through every operation, with sizes for tensors. Follows models/llama/model.cpp,
/// models/glm/model.cpp, nn/linear_group.cpp and the operations' own files line by line.
class Rehearsal {
 public:
  explicit Rehearsal(const MemoryInputs& inputs)
      : in_(inputs),
        shapes_(inputs.shapes),
        stream_(bytes_of(shapes_.stream_dtype)),
        compute_type_(inputs.amp_dtype == at::kFloat ? shapes_.stream_dtype : inputs.amp_dtype),
        compute_(bytes_of(compute_type_)),
        weight_(bytes_of(shapes_.weight_dtype)),
        T_(tokens()),
        N_(T_ + sequences() * shapes_.embedded_tokens),
        P_(places()),
        D_(shapes_.hidden),
        Q_(shapes_.heads * shapes_.head_dim),
        W_((shapes_.heads + 2 * shapes_.kv_heads) * shapes_.head_dim),
        head_shape_{shapes_.head},
        head_{.shape = &head_shape_, .is_head = true} {
    bool has_gradient = shapes_.embedding_trained || shapes_.embedded_tokens > 0;
    for (const auto& shape : shapes_.layers) {
      const Layer layer{{&shape.qkv},
                        {&shape.out},
                        {&shape.gate_up},
                        {&shape.down},
                        &shape.attention_adapters,
                        &shape.output_adapters,
                        shape.norms_trained,
                        shapes_.prefixed_tokens > 0,
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

  void run() {
    load();
    // The first step packs the weights; the second meets all of them packed.
    for (int step = 0; step < 2; ++step) {
      gradients_exist_ = false;
      for (int64_t i = 0; i < std::min<int64_t>(in_.grad_accum, 2); ++i) micro_batch();
      { const Scope updating(ledger_, kWeights, static_cast<int64_t>(in_.parameters.update_bytes)); }
      ledger_.drop(kGradients, ledger_.now(kGradients));
    }
    save();
  }

  const Ledger& ledger() const { return ledger_; }
  int64_t packed_bytes() const { return packed_; }

  /// Freed memory that the heap cannot use again; a GPU's allocator keeps blocks by size.
  int64_t kept_bytes() const {
    if (!on_cpu()) return 0;
    const bool accumulates = in_.grad_accum > 1;
    const double of_layers = accumulates                ? kKeptOfLayersAccumulated
                             : layers_are_in_few_bits() ? kKeptOfLayersInFewBits
                                                        : kKeptOfLayers,
                 of_gradients = accumulates ? kKeptOfGradientsAccumulated : kKeptOfGradients;
    return static_cast<int64_t>(holes_of_packing() + of_layers * holes_of_layers() +
                                kKeptOfDropouts * static_cast<double>(layer_count() * bytes_beside_products()) +
                                of_gradients * static_cast<double>(in_.parameters.gradients_bytes));
  }

  /// What products themselves keep.
  int64_t product_bytes() const {
    if (!on_cpu() || compute_type_ != at::kFloat) return 0;
    int64_t largest = shapes_.head.numbers();
    for (const auto& layer : shapes_.layers) largest = std::max(largest, layer.gate_up.front().numbers());
    return std::min(kWideProductLimit, kWideProductTimes * largest * 4);
  }

 private:
  // ---- What the heap keeps ----

  /// The transposes of the first backward pass find the holes that the head and the last layer left. Layers that stream leave
  /// none, and have no transposes.
  double holes_of_packing() const {
    if (in_.streams_layers || left_by_layers_ == 0) return left_by_head_;
    return left_by_layers_ * static_cast<double>(layer_count() - 1) / static_cast<double>(layer_count());
  }

  bool layers_are_in_few_bits() const { return layers_.front().down.is_in_few_bits(); }

  /// Of all layers but the last, whose room the head uses. Recomputed tensors find their room again, unless transposes that
  /// the first backward pass leaves between them, weights that are made for a product, or gradients of earlier micro-batches
  /// break it up.
  double holes_of_layers() const {
    const LayerTensors tensors = tensors_of_layer();
    const auto others = static_cast<double>(layer_count() - 1);
    const bool is_broken_up = left_by_layers_ > 0 || layers_are_in_few_bits() || in_.grad_accum > 1;
    const double share = in_.recompute == nn::Recompute::kFull ? kRecomputedShare : kRecomputedHalves;
    const double recomputed = std::max(kRecomputedLayers, is_broken_up ? share * others : 0);
    return others * holes_of(tensors.lasting) + recomputed * holes_of(tensors.recomputed);
  }

  /// Large tensors less the small ones that find room in their holes.
  static double holes_of(const std::vector<int64_t>& tensors) {
    int64_t holes = 0;
    for (const int64_t bytes : tensors) holes += bytes < kLargeTensor ? -bytes : bytes;
    return static_cast<double>(std::max<int64_t>(holes, 0));
  }

  /// Those that stay until the layer's backward pass, and those that are made again for it.
  struct LayerTensors {
    std::vector<int64_t> lasting, recomputed;
  };
  LayerTensors tensors_of_layer() const {
    const int64_t state = N_ * D_ * compute_, stream = N_ * D_ * stream_, inner = N_ * layers_.front().down.inputs() * compute_,
                  gate_up = N_ * layers_.front().gate_up.outputs() * compute_;
    LayerTensors tensors{.lasting = {stream, state}, .recomputed = {}};  // the layer's inputs
    const auto add = [&](bool lasts, std::initializer_list<int64_t> sizes) {
      auto& list = lasts ? tensors.lasting : tensors.recomputed;
      list.insert(list.end(), sizes);
    };
    add(in_.recompute != nn::Recompute::kFull, {stream, state, P_ * W_ * compute_, P_ * Q_ * compute_});  // attention
    add(in_.recompute == nn::Recompute::kNone, {state, gate_up, inner, state});                           // feed-forward
    return tensors;
  }

  /// Of one layer's adapters that drop inputs: mask and dropped input, the update and its sum with the product, the sums side
  /// by side.
  int64_t bytes_beside_products() const {
    const Layer& layer = layers_.front();
    int64_t numbers = 0;
    for (const Group* group : {&layer.qkv, &layer.out, &layer.gate_up, &layer.down}) {
      if (dropouts(*group) == 0) continue;
      for (const auto& linear : *group->shape) numbers += 2 * N_ * linear.dropouts * (linear.in + linear.out);
      if (group->shape->size() > 1) numbers += N_ * group->outputs();
    }
    return numbers * compute_;
  }

  // ---- What the run's options mean ----

  int64_t tokens() const {
    const int64_t all = in_.micro_batch * in_.row_tokens;
    return in_.packed_rows ? (all + 63) / 64 * 64 : all;
  }
  /// In one micro-batch.
  int64_t sequences() const {
    return in_.packed_rows ? static_cast<int64_t>(in_.sequences_per_row * static_cast<double>(in_.micro_batch)) : in_.micro_batch;
  }
  int64_t places() const {
    const int64_t all = tokens() + sequences() * (shapes_.embedded_tokens + (has_prefix_rows() ? shapes_.prefixed_tokens : 0));
    return attends_by_class() ? static_cast<int64_t>(static_cast<double>(all) * in_.places_per_token) : all;
  }
  /// Of a sequence that attention sees, in the worst case.
  int64_t longest() const {
    return (in_.longest_sequence > 0 ? in_.longest_sequence : in_.row_tokens) + shapes_.embedded_tokens +
           (has_prefix_rows() ? shapes_.prefixed_tokens : 0);
  }
  bool has_prefix_rows() const { return shapes_.qkv_by_heads && shapes_.prefixed_tokens > 0; }
  bool on_cpu() const { return in_.device == c10::kCPU; }
  /// ops/rows.h: kernels exist on the CPU for bf16 and fp32.
  bool has_kernel(bool wanted) const {
    return wanted && on_cpu() && compute_type_ != at::kHalf && shapes_.stream_dtype != at::kHalf;
  }
  bool is_joined(const Group& group) const { return in_.fast_paths.joined && !group.has_trained_weight(); }
  bool is_streamed(const Group& group) const { return in_.streams_layers && !group.is_head && !group.has_trained_weight(); }
  bool can_pack(const Group& group) const {
    return on_cpu() && in_.packing_pays && in_.fast_paths.packed_weights && is_joined(group);
  }
  bool is_converted() const { return shapes_.weight_dtype != compute_type_; }
  /// LinearGroup::pack: a weight that others hold, or of another type, stays.
  bool is_released(const Group& group) const {
    return in_.fast_paths.release_plain && !is_converted() && !(group.is_head && shapes_.head_is_tied);
  }
  int64_t form_bytes(const Group& group) const { return group.numbers() * compute_; }

  // ---- Before the first step ----

  void load() {
    const auto& parameters = in_.parameters;
    ledger_.hold(kWeights, static_cast<int64_t>(parameters.weights_bytes) - streamed_bytes());
    { const Scope converted(ledger_, kWeights, static_cast<int64_t>(in_.loading_bytes)); }
    ledger_.hold(kWeights, static_cast<int64_t>(parameters.adapters_bytes + parameters.optimizer_bytes));
    if (in_.streams_layers) ledger_.hold(kWeights, std::min<int64_t>(2, layer_count()) * streamed_bytes() / layer_count());
  }

  int64_t layer_count() const { return static_cast<int64_t>(layers_.size()); }
  int64_t streamed_bytes() const {
    int64_t numbers = 0;
    for (const Layer& layer : layers_) {
      for (const Group* group : {&layer.qkv, &layer.out, &layer.gate_up, &layer.down}) {
        if (is_streamed(*group)) numbers += group->numbers();
      }
    }
    return numbers * weight_;
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

  /// Packed for one product. Weights that came together lie side by side: only another type makes a copy of them.
  int64_t brought_bytes(const Group& group) const { return form_bytes(group) * (is_converted() ? 2 : 1); }

  /// Numbers made out of few bits: of a joined group all, else of one layer after the other; in the parameter's type or
  /// (nn::LinearImpl::passing_dtype) straight in the product's. Plain products of half precision lay them out anew.
  int64_t made_bytes(const Group& group) const {
    int64_t numbers = 0;
    for (const auto& layer : *group.shape)
      numbers = is_joined(group) ? numbers + layer.numbers() : std::max(numbers, layer.numbers());
    const bool is_straight = shapes_.weight_dtype == at::kFloat || !is_converted();
    return numbers * ((is_straight ? compute_ : weight_ + compute_) + (on_cpu() && compute_ < 4 ? compute_ : 0));
  }

  /// Plain weights of another type than the product's are converted for it, one layer after the other.
  int64_t cast_bytes(const Group& group) const {
    if (!is_converted()) return 0;
    int64_t largest = 0;
    for (const auto& layer : *group.shape) largest = std::max(largest, layer.numbers());
    return largest * compute_;
  }

  void pack(Group& group) {
    const bool is_copied = group.shape->size() > 1 || is_converted();
    const Scope joined(ledger_, kPacked, is_copied ? form_bytes(group) : 0);
    ledger_.hold(kPacked, form_bytes(group));
    packed_ += form_bytes(group);
    group.packed = true;
    double& left = group.is_head ? left_by_head_ : left_by_layers_;
    if (!is_released(group)) {
      left += is_copied ? kKeptOfCopies * static_cast<double>(form_bytes(group)) : 0;
      return;
    }
    const int64_t plain = group.numbers() * weight_;
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

  bool needs_input(const Group& group) const {
    const bool recomputes = group.is_in_few_bits() && !is_joined(group);  // LinearImpl::base_forward
    return group.has_trained_weight() || group.ranks() > 0 || group.scales_inputs() || recomputes;
  }

  /// A product's input: until the scope's end, or where something trained needs it again for the backward pass.
  void hold_input(const Group& group, bool keep, int64_t& kept, Scope& flow) {
    hold(keep && needs_input(group), kept, N_ * group.inputs() * compute_, flow);
    if (keep) hold_kept(kept, kept_beside_input(group));
    if (group.scales_inputs()) scale(N_ * group.inputs(), flow);
  }

  /// ops/scale_columns.cpp: the numbers that come out, and on the way wide ones.
  void scale(int64_t numbers, Scope& flow) {
    if (compute_ < 4) const Scope wide(ledger_, kActivations, 2 * numbers * 4);
    flow.hold(numbers * compute_);
  }

  /// Adapters' scales of a group's outputs, whose place the scaled ones take: the plain ones stay for the scales' gradient.
  void scale_outputs(const Group& group, bool keep, int64_t& kept, Scope& flow) {
    if (!group.scales_outputs()) return;
    const int64_t numbers = N_ * group.outputs();
    { const Scope rows(ledger_, kActivations, group.rows_for_scales() * (group.inputs() + group.outputs()) * compute_); }
    // Dropout multiplies a dropped input with weight and factors, each scaled by itself.
    hold(keep, kept, (dropouts(group) > 0 ? 2 : 1) * numbers * compute_, flow);
    Scope scaled(ledger_);
    scale(numbers, scaled);
  }

  /// Products with the A factors, the factors as they were multiplied, each dropout's mask, and the cast of a trained weight,
  /// which autocast keeps.
  int64_t kept_beside_input(const Group& group) const {
    int64_t bytes = N_ * group.ranks() * compute_ + dropouts(group) * N_ * group.inputs() * compute_;
    if (is_joined(group)) bytes += factor_bytes(group);
    for (const auto& layer : *group.shape) bytes += layer.products_of_factors * 4;
    if (group.has_trained_weight() && shapes_.stream_dtype != compute_type_) bytes += group.numbers() * compute_;
    return bytes;
  }

  /// Copies of the factors in the products' type, the A factors of several layers below each other, the B factors scaled.
  int64_t factor_bytes(const Group& group) const {
    int64_t numbers = 0, updates = 0;
    for (const auto& layer : *group.shape) {
      if (layer.rank == 0 || layer.dropouts > 0) continue;
      ++updates;
      numbers += layer.rank * layer.out;
    }
    if (updates > 1 || compute_ < 4) {
      for (const auto& layer : *group.shape) numbers += layer.dropouts > 0 ? 0 : layer.rank * layer.in;
    }
    return numbers * compute_;
  }

  static int64_t dropouts(const Group& group) {
    int64_t sum = 0;
    for (const auto& layer : *group.shape) sum += layer.dropouts;
    return sum;
  }

  /// Outputs of layers that run one by one, or get an update by itself, exist apart before they stand side by side.
  void join_outputs(const Group& group) {
    const bool apart = (!is_joined(group) && group.shape->size() > 1) || dropouts(group) > 0;
    const Scope both(ledger_, kActivations, apart ? 2 * N_ * group.outputs() * compute_ : 0);
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
    const int64_t numbers = N_ * group.outputs();
    const Scope gradients(ledger_, kActivations, numbers * (compute_ + (compute_ < 4 ? 2 * 4 : 0) + 4));
  }

  /// Networks behind a block (adapters/bottleneck.cpp), each of which takes the block's output and gives another.
  void bottlenecks_forward(const Bottlenecks& adapters, bool keep, int64_t& kept) {
    for (const auto& adapter : adapters) {
      const int64_t state = N_ * D_ * compute_, inner = N_ * adapter.size * compute_;
      Scope flow(ledger_);
      const bool is_own = !adapter.reads_stream || stream_ != compute_;  // else the norm keeps it, too
      hold(keep, kept, (is_own ? state : 0) + (adapter.drops ? state + N_ * D_ : 0), flow);
      if (keep) hold_kept(kept, compute_ < 4 ? adapter.numbers * compute_ : 0);  // weights as they are multiplied
      hold(keep, kept, inner * (adapter.keeps_before_activation ? 2 : 1), flow);
      if (keep && adapter.learns_scale) hold_kept(kept, state);
      flow.hold((adapter.learns_scale && keep ? 2 : 3) * state);  // the network's output, scaled, added
    }
  }
  void bottlenecks_backward(const Bottlenecks& adapters, int64_t& kept) {
    for (const auto& adapter : adapters) {
      const Scope gradients(ledger_, kActivations, N_ * (3 * D_ + 2 * adapter.size) * compute_);
      add_gradients(adapter.numbers * 4);
    }
    release(kept);
  }

  // ---- Forward ----

  /// What the layer keeps goes into layer.kept when `keep` is set, and is gone at its end otherwise.
  void forward(Layer& layer, bool keep, bool with_gradients) {
    const bool recomputes_half = in_.recompute == nn::Recompute::kSelective;
    Scope flow(ledger_);
    // What the layer before left to add; recomputation keeps it among the inputs.
    if (in_.recompute != nn::Recompute::kFull) flow.hold(N_ * D_ * compute_ + normed_before_bytes(layer));
    attention_forward(layer, keep, with_gradients, flow);
    if (!recomputes_half) {
      feed_forward(layer, keep, with_gradients);
    } else {
      feed_forward(layer, false, false);
      if (keep) keep_inputs(layer);
    }
  }

  /// What the last norm of the layer before gave, while this layer runs, where no product keeps it.
  int64_t normed_before_bytes(const Layer& layer) const {
    const bool is_kept = in_.recompute == nn::Recompute::kNone && keeps_normed(layer.gate_up);
    return shapes_.adds_to_normed && !is_kept ? N_ * D_ * stream_ : 0;
  }
  /// Whether the input that a product keeps is what a norm gave.
  bool keeps_normed(const Group& group) const { return needs_input(group) && stream_ == compute_; }

  /// What recomputation begins with: the stream, which may be what the norm before keeps, and what is still to be added to
  /// it, of which a whole first layer has none.
  void keep_inputs(Layer& layer) {
    const bool has_more = in_.recompute == nn::Recompute::kSelective || &layer != &layers_.front();
    const bool is_kept = shapes_.adds_to_normed ? layer.kept.qkv > 0 && keeps_normed(layer.qkv) : layer.kept.norm1 > 0;
    hold_kept(layer.inputs_kept, N_ * D_ * ((is_kept ? 0 : stream_) + (has_more ? compute_ : 0)));
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

  /// A norm's sum and its rows' statistics.
  int64_t norm_bytes() const { return N_ * D_ * stream_ + N_ * 4 * (shapes_.layer_norms ? 2 : 1); }

  void norm_forward(bool keep, int64_t& kept, Scope& flow) {
    if (shapes_.adds_to_normed) {
      norm_forward_to_stream(keep, kept, flow);
    } else {
      hold(keep, kept, norm_bytes(), flow);
    }
    if (!has_kernel(in_.fast_paths.fused_norm)) const Scope wide(ledger_, kActivations, 3 * N_ * D_ * 4);
  }

  /// The sum is nobody else's, and what is added is converted for it. What comes out is the next sum's other part; of one type
  /// with the products it is the input that hold_input counts.
  void norm_forward_to_stream(bool keep, int64_t& kept, Scope& flow) {
    Scope summed(ledger_);
    if (stream_ != compute_) summed.hold(N_ * D_ * stream_);
    hold(keep, kept, norm_bytes(), summed);
    if (stream_ != compute_) flow.hold(N_ * D_ * stream_);
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
      inside.hold(N_ * W_ * compute_);
      if (attends_by_class()) inside.hold(P_ * W_ * compute_);
      const bool is_joined_again = has_kernel(in_.fast_paths.fused_attention) && (!layer.has_prefix || has_prefix_rows());
      if (is_joined_again) inside.hold(P_ * W_ * compute_);  // heads apart, then joined again
    }
    hold(attention_keeps, layer.kept.attention, attention_bytes(), inside);
    // The out projection's input is attention's result; laid out anew when packed rows are attended to class by class.
    const bool out_keeps = keep && (attention_keeps || layer.out.trains());
    if (attends_by_class() || has_prefix_rows()) {
      const Scope joined(ledger_, kActivations, attends_by_class() ? P_ * Q_ * compute_ : 0);
      hold_input(layer.out, out_keeps, layer.kept.out, inside);
    } else if (out_keeps) {
      hold_kept(layer.kept.out, kept_beside_input(layer.out) + (attention_keeps ? 0 : N_ * Q_ * compute_));
    }
    multiply(layer.out, with_gradients);
    flow.hold(N_ * D_ * compute_);
    scale_outputs(layer.out, out_keeps, layer.kept.out, inside);
    bottlenecks_forward(*layer.after_attention, keep, layer.kept.after_attention);
  }

  /// The product as it stands and laid out anew; then the latter with virtual tokens' rows put in.
  void rearrange_heads() {
    if (!shapes_.qkv_by_heads) return;
    { const Scope both(ledger_, kActivations, 2 * N_ * W_ * compute_); }
    if (has_prefix_rows()) const Scope lengthened(ledger_, kActivations, (N_ + P_) * W_ * compute_);
  }
  /// The gradient of the layout anew, less its virtual tokens' rows, and as the product stands, whose place `dheads` takes.
  void rearrange_heads_backward(Scope& dheads) {
    if (!shapes_.qkv_by_heads) return;
    { const Scope both(ledger_, kActivations, (has_prefix_rows() ? 2 : 1) * N_ * W_ * compute_); }
    dheads.end();
    dheads.hold(N_ * W_ * compute_);
  }

  /// Attention straight from the projections, which takes packed rows as they are, as a GPU's attention by bounds does.
  bool attends_joined() const {
    const bool has_keys_apart = shapes_.prefixed_tokens > 0 && !has_prefix_rows();
    return !has_keys_apart && has_kernel(in_.fast_paths.fused_rotary && in_.fast_paths.fused_attention);
  }
  /// Elsewhere they are laid out class by class, which is planned as one class.
  bool attends_by_class() const {
    const bool by_bounds = shapes_.prefixed_tokens == 0 && ops::attends_by_bounds(in_.device, compute_type_, shapes_.head_dim);
    return in_.packed_rows && !attends_joined() && !by_bounds && !shapes_.qkv_by_heads;
  }

  /// Queries, keys, values, the result and each row's normaliser.
  int64_t attention_bytes() const {
    if (shapes_.prefixed_tokens > 0 && !has_prefix_rows()) return prefixed_attention_bytes();
    int64_t width = W_ + Q_;
    if (!has_kernel(in_.fast_paths.fused_attention)) {
      if (!has_kernel(in_.fast_paths.fused_rotary)) width += W_ - (W_ - Q_) / 2;  // values are a part of the whole product
      const bool shares_heads = !on_cpu() && compute_ == 2;                       // ops/causal_attention.cpp
      if (shapes_.heads != shapes_.kv_heads && !shares_heads) width += 2 * Q_;
      // ops/prefix_attention.cpp: of all, and of the context, which is taken to be half of a row.
      if (shapes_.qkv_by_heads) width += Q_ + Q_ / 2;
    }
    return P_ * width * compute_ + P_ * shapes_.heads * 4;
  }

  /// Queries and the result; keys and values of virtual tokens before each sequence's own, for every query head; the mask as
  /// numbers, and each row's normaliser.
  int64_t prefixed_attention_bytes() const {
    const int64_t keys = P_ + sequences() * shapes_.prefixed_tokens, length = longest();
    const int64_t mask = length * (shapes_.prefixed_tokens + length);
    return (2 * P_ * Q_ + 2 * keys * Q_ + mask) * compute_ + P_ * shapes_.heads * 4;
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
    hold(gate_up_keeps, layer.kept.activation, N_ * layer.gate_up.outputs() * compute_, flow);
    const bool down_keeps = keep && (gate_up_keeps || layer.down.trains());
    hold_input(layer.down, down_keeps, layer.kept.down, flow);
    multiply(layer.down, with_gradients);
    flow.hold(N_ * D_ * compute_);
    scale_outputs(layer.down, down_keeps, layer.kept.down, flow);
    bottlenecks_forward(*layer.after_feed_forward, keep, layer.kept.after_feed_forward);
  }

  // ---- The head and the loss ----

  void loss() {
    Scope flow(ledger_);
    hold(output_has_gradient_, final_norm_, norm_bytes(), flow);
    flow.hold(N_ * D_ * compute_);                                                         // hidden states
    if (in_.micro_batch > 1 || in_.packed_rows || N_ > T_) flow.hold(T_ * D_ * compute_);  // of the targets alone
    if (N_ > T_) flow.hold(T_ * D_ * compute_);                                            // with those before first tokens
    flow.hold(T_ * 4 * 8);                                                                 // labels, their places
    if (shapes_.head.rank > 0 || shapes_.head.dropouts > 0 || shapes_.head_has_bias) {
      whole_logits();
    } else {
      logits_by_chunks();
    }
  }

  void whole_logits() {
    const int64_t logits = T_ * shapes_.vocabulary;
    multiply(head_, true);
    // The logarithm of the softmax, its gradient and that of the logits, all fp32; the latter in the product's type, too.
    const Scope kept(ledger_, kLogits, logits * (3 * 4 + (compute_ < 4 ? compute_ : 0)));
    multiply_transposed(head_);
    add_gradients(head_);
  }

  void logits_by_chunks() {
    const int64_t V = shapes_.vocabulary, on_cpu_most = kChunkLogits * (shapes_.head.trained ? kTrainedChunkTimes : 1);
    const int64_t most = on_cpu() ? on_cpu_most : kGpuChunkLogits;
    const int64_t chunk_rows = std::max(kLeastChunkRows, most / V / kLeastChunkRows * kLeastChunkRows);
    const int64_t rows = std::min(chunk_rows, (T_ + kLeastChunkRows - 1) / kLeastChunkRows * kLeastChunkRows);
    if (output_has_gradient_) hold_kept(hidden_gradient_, T_ * D_ * compute_);
    multiply(head_, true);
    Scope chunk(ledger_, kLogits);
    if (shapes_.head.trained && shapes_.head.dtype != compute_type_) chunk.hold(head_.numbers() * compute_);
    chunk.hold(rows * V * compute_);
    if (!has_kernel(in_.fast_paths.fused_loss)) chunk.hold(rows * V * (4 + (compute_ < 4 ? 4 : 0)));
    chunk.hold(2 * rows * D_ * compute_);  // the rows, filled up, and their gradient
    if (output_has_gradient_) multiply_transposed(head_);
    if (shapes_.head.trained) head_gradient(chunk, T_ > chunk_rows);
  }

  /// One chunk's gradient stays in the products' type, the sum of several is fp32; then both times the loss' gradient.
  void head_gradient(Scope& chunk, bool is_sum) {
    const int64_t part = head_.numbers() * compute_, sum = is_sum ? head_.numbers() * 4 : part;
    const Scope made(ledger_, kGradients, sum);
    if (is_sum) const Scope added(ledger_, kGradients, compute_ < 4 ? 2 * part : part);
    chunk.end();
    const bool is_converted = sum != head_.numbers() * bytes_of(shapes_.head.dtype);
    const Scope multiplied(ledger_, kGradients, is_converted ? sum : 0);
    add_gradients(head_);
  }

  // ---- Backward ----

  void micro_batch() {
    const Scope batch(ledger_, kActivations, T_ * 2 * 8);
    const Scope virtual_tokens(ledger_, kActivations, virtual_token_bytes());
    const Scope tables(ledger_, kActivations, rotary_bytes());
    for (Layer& layer : layers_) {
      if (in_.recompute == nn::Recompute::kFull) {
        keep_inputs(layer);
        forward(layer, false, false);
      } else {
        forward(layer, true, true);
      }
    }
    loss();
    Scope gradient(ledger_, kActivations, gradient_bytes());
    { const Scope of_states(ledger_, kActivations, 2 * N_ * D_ * compute_); }
    release(final_norm_);
    release(hidden_gradient_);
    for (size_t i = layers_.size(); i-- > 0;) backward(layers_[i]);
    if (shapes_.prompt_numbers > 0) {
      const Scope of_tokens(ledger_, kActivations, virtual_token_bytes());
      add_gradients(shapes_.prompt_numbers * 4);
    }
    embedding_gradient();
    gradients_exist_ = true;
  }

  /// Embedded tokens with the real ones; keys and values of all layers, in fp32 as a network makes them and in the products'
  /// type.
  int64_t virtual_token_bytes() const {
    const int64_t keys = shapes_.prefixed_tokens * 2 * layer_count() * shapes_.kv_heads * shapes_.head_dim;
    const int64_t turned = has_prefix_rows() ? keys / 2 * compute_ : 0;  // the keys in pairs
    return (shapes_.embedded_tokens > 0 ? N_ * D_ * stream_ : 0) + keys * (4 + (compute_ < 4 ? compute_ : 0)) + turned;
  }

  /// Cosines and sines of each place by itself; tables by position alone are small.
  int64_t rotary_bytes() const { return shapes_.qkv_by_heads ? P_ * shapes_.head_dim * 4 : 0; }

  /// Of the stream between layers, and of what is still to be added to it when that has a type of its own.
  int64_t gradient_bytes() const { return N_ * D_ * (stream_ + (stream_ == compute_ ? 0 : compute_)); }

  void release(int64_t& kept) {
    ledger_.drop(kActivations, kept);
    kept = 0;
  }

  void backward(Layer& layer) {
    Scope again(ledger_);  // outputs of the second forward pass: the result, and the sum that the norm before it keeps, too
    if (in_.recompute == nn::Recompute::kFull) {
      forward(layer, true, true);
    } else if (in_.recompute == nn::Recompute::kSelective) {
      feed_forward(layer, true, true);
    }
    if (in_.recompute != nn::Recompute::kNone) again.hold(N_ * D_ * compute_ + beside_result_bytes(layer));
    feed_forward_backward(layer);
    if (in_.recompute == nn::Recompute::kFull) again.hold(N_ * D_ * stream_);
    if (in_.recompute == nn::Recompute::kSelective) {
      again.end();
      release(layer.inputs_kept);
    }
    attention_backward(layer);
    release(layer.inputs_kept);
  }

  /// Where the next sum begins with what a norm gave: that comes out beside the result, and the gradient of the result, being one
  /// of its own, waits until all of the part is done.
  int64_t beside_result_bytes(const Layer& layer) const {
    if (!shapes_.adds_to_normed) return 0;
    return N_ * D_ * (keeps_normed(layer.gate_up) ? 0 : stream_) + result_gradient_bytes();
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
      dh.hold(N_ * inner * compute_);
      multiply_transposed(layer.down);
    }
    add_gradients(layer.down);
    dresult.end();
    release(layer.kept.down);
    Scope dgate_up(ledger_);
    if (reaches_activation) dgate_up.hold(N_ * layer.gate_up.outputs() * compute_);
    dh.end();
    release(layer.kept.activation);
    scale_outputs_backward(layer.gate_up);
    Scope dy(ledger_);
    if (reaches_norm) {
      dy.hold(N_ * D_ * compute_);
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
      dout.hold(N_ * Q_ * compute_);
      multiply_transposed(layer.out);
      if (attends_by_class() || has_prefix_rows()) dout.hold(P_ * Q_ * compute_);
    }
    add_gradients(layer.out);
    dresult.end();
    release(layer.kept.out);
    Scope dheads(ledger_);
    if (reaches_attention) {
      dheads.hold(layer.has_prefix && !has_prefix_rows() ? prefixed_gradient_bytes() : P_ * W_ * compute_);
      const Scope block(ledger_, kActivations, attention_block_bytes());
    }
    dout.end();
    release(layer.kept.attention);
    Scope dqkv(ledger_);
    if (!attends_joined()) {  // else those of the heads stand side by side already
      if (reaches_attention) dqkv.hold(P_ * W_ * compute_ + (attends_by_class() ? N_ * W_ * compute_ : 0));
      dheads.end();
    }
    if (reaches_attention) rearrange_heads_backward(attends_joined() ? dheads : dqkv);
    scale_outputs_backward(layer.qkv);
    if (reaches_norm) {
      dqkv.hold(N_ * D_ * compute_);
      multiply_transposed(layer.qkv);
    }
    add_gradients(layer.qkv);
    release(layer.kept.qkv);
    if (reaches_norm) norm_backward(layer, dqkv);
    release(layer.kept.norm1);
  }

  /// The gradient of the sum; before it those of a layer norm's own weights, made of wide numbers.
  void norm_backward(const Layer& layer, Scope& flow) {
    if (shapes_.layer_norms && layer.norms_trained) const Scope wide(ledger_, kActivations, (stream_ < 4 ? 2 : 1) * N_ * D_ * 4);
    flow.hold(gradient_bytes());
  }

  /// Of a block's result, where it is not the stream's: that is scaled. In another type it is counted with the stream's.
  int64_t result_gradient_bytes() const { return shapes_.adds_to_normed && stream_ == compute_ ? N_ * D_ * compute_ : 0; }

  /// The backward pass of one thread: one head of the longest sequence in the products' type three times, its gradients
  /// twice in fp32, and a block's scores, twice in fp32 and three times narrow.
  int64_t attention_block_bytes() const {
    if (!has_kernel(in_.fast_paths.fused_attention)) return 0;
    const int64_t length = longest();
    const int64_t head = length * shapes_.head_dim, block = kAttentionQueries * std::min(length, kAttentionKeys);
    return head * (3 * compute_ + 2 * 4) + block * (3 * compute_ + 2 * 4);
  }

  int64_t prefixed_gradient_bytes() const { return (P_ * Q_ + 2 * (P_ + sequences() * shapes_.prefixed_tokens) * Q_) * compute_; }

  /// Dense, whatever few rows were used; a tied head's gradient has waited for it.
  void embedding_gradient() {
    if (!shapes_.embedding_table_trained) return;
    const int64_t bytes = shapes_.vocabulary * D_ * stream_;
    if (shapes_.head_is_tied && shapes_.head.trained) {
      const Scope added(ledger_, kGradients, bytes);
    } else {
      add_gradients(bytes);
    }
  }

  // ---- After the last step ----

  /// Saving the base asks for all plain weights again.
  void save() {
    if (in_.saves_base) ledger_.hold(kWeights, released_);
  }

  const MemoryInputs& in_;
  const nn::DecoderShapes& shapes_;
  const int64_t stream_;  ///< bytes of a number of the stream between layers
  const at::ScalarType compute_type_;
  const int64_t compute_, weight_;
  const int64_t T_, N_, P_, D_, Q_, W_;
  const LinearGroupShape head_shape_;
  Group head_;
  std::vector<Layer> layers_;
  bool output_has_gradient_ = false;
  bool gradients_exist_ = false;  ///< of an earlier micro-batch of this step
  int64_t final_norm_ = 0, hidden_gradient_ = 0;
  int64_t packed_ = 0, released_ = 0;
  double left_by_layers_ = 0, left_by_head_ = 0;  ///< holes where packing freed weights or copies of them
  Ledger ledger_;
};

uint64_t nbytes(const at::Tensor& tensor) {
  return static_cast<uint64_t>(tensor.numel()) * c10::elementSize(tensor.scalar_type());
}

/// What the weights in few bits take, by their parameters.
std::map<const at::TensorImpl*, uint64_t> quantized_bytes(const torch::nn::Module& model) {
  std::map<const at::TensorImpl*, uint64_t> bytes;
  for (const auto& module : model.modules(/*include_self=*/false)) {
    const auto* linear = module->as<nn::LinearImpl>();
    if (linear != nullptr && linear->weight_is_quantized()) {
      bytes.emplace(linear->weight.unsafeGetTensorImpl(), linear->quantized_weight()->bytes());
    }
  }
  return bytes;
}

/// Of importances and their uncertainty.
uint64_t average_bytes(const AdapterSet& set) {
  uint64_t bytes = 0;
  if (!set.allocator()) return bytes;
  for (const auto& slot : set.slots()) {
    for (const auto& parameter : slot.adapter->parameters()) bytes += 2 * nbytes(parameter);
  }
  return bytes;
}

uint64_t state_bytes(const at::Tensor& parameter, const OptimizerOptions& optimizer) {
  const uint64_t numbers = static_cast<uint64_t>(parameter.numel());
  const uint64_t wide = parameter.scalar_type() == at::kDouble ? 8 : 4;
  const uint64_t master = optimizer.master_weights && is_half(parameter.scalar_type()) ? numbers * wide : 0;
  if (optimizer.type == "adamw") return master + 2 * numbers * wide + sizeof(float);
  return master + (optimizer.momentum == 0 ? 0 : numbers * wide);
}

/// Without a master the value becomes fp32 for its update, and the gradient does unless AdamW's kernel for bf16 reads it.
uint64_t update_bytes(const at::Tensor& parameter, const OptimizerOptions& optimizer) {
  if (optimizer.master_weights || !is_half(parameter.scalar_type())) return 0;
  const bool has_kernel = optimizer.type == "adamw" && parameter.scalar_type() == at::kBFloat16;
  return static_cast<uint64_t>(parameter.numel()) * (has_kernel ? 4 : 8);
}

}  // namespace

ParameterMemory parameter_memory(const torch::nn::Module& model, const AdapterSets& adapters, const OptimizerOptions& optimizer) {
  std::set<const at::TensorImpl*> in_adapter, seen;
  ParameterMemory memory;
  const auto bytes_in_few_bits = quantized_bytes(model);
  for (const auto& parameter : adapters.parameters()) in_adapter.insert(parameter.unsafeGetTensorImpl());
  for (const AdapterSet& set : adapters) {
    memory.optimizer_bytes += average_bytes(set);
    memory.trainable -= num_held_numbers(set);
    for (const auto* whole : {&set.saved_parameters(), &set.biases()}) {
      for (const auto& saved : *whole) memory.weights_bytes += nbytes(saved.other);
    }
  }
  for (const auto& entry : model.named_parameters()) {
    const at::Tensor& parameter = entry.value();
    if (!seen.insert(parameter.unsafeGetTensorImpl()).second) continue;
    memory.parameters += parameter.numel();
    const bool is_adapters = in_adapter.contains(parameter.unsafeGetTensorImpl());
    const auto few = bytes_in_few_bits.find(parameter.unsafeGetTensorImpl());
    (is_adapters ? memory.adapters_bytes : memory.weights_bytes) +=
        few == bytes_in_few_bits.end() ? nbytes(parameter) : few->second;
    if (!parameter.requires_grad()) continue;
    memory.trainable += parameter.numel();
    memory.gradients_bytes += nbytes(parameter);
    memory.optimizer_bytes += state_bytes(parameter, optimizer);
    memory.update_bytes = std::max(memory.update_bytes, update_bytes(parameter, optimizer));
  }
  return memory;
}

MemoryPlan plan_memory(const MemoryInputs& inputs) {
  Rehearsal rehearsal(inputs);
  rehearsal.run();
  const Ledger& ledger = rehearsal.ledger();
  const bool on_cpu = inputs.device == c10::kCPU;
  MemoryPlan plan;
  plan.parameters = inputs.parameters;
  plan.packed_bytes = static_cast<uint64_t>(rehearsal.packed_bytes());
  plan.activations_bytes = static_cast<uint64_t>(ledger.most(kActivations));
  plan.logits_bytes = static_cast<uint64_t>(ledger.most(kLogits));
  const int64_t program = (on_cpu ? kProgramBytes : kContextBytes) + rehearsal.product_bytes();
  plan.program_bytes = static_cast<uint64_t>(program) + inputs.data_bytes;
  plan.tensors_bytes = static_cast<uint64_t>(ledger.peak());
  plan.kept_bytes = static_cast<uint64_t>(rehearsal.kept_bytes());
  plan.peak_bytes = plan.program_bytes + plan.tensors_bytes + plan.kept_bytes;
  return plan;
}

int64_t largest_micro_batch(MemoryInputs inputs, uint64_t memory_bytes) {
  const auto fits = [&](int64_t rows) {
    inputs.micro_batch = rows;
    return plan_memory(inputs).peak_bytes <= memory_bytes;
  };
  if (!fits(1)) return 0;
  int64_t fitting = 1, too_large = 2;
  while (too_large * inputs.row_tokens < kMostTokens && fits(too_large)) fitting = std::exchange(too_large, too_large * 2);
  while (too_large - fitting > 1) {
    const int64_t middle = fitting + (too_large - fitting) / 2;
    (fits(middle) ? fitting : too_large) = middle;
  }
  return fitting;
}

}  // namespace lora::train
