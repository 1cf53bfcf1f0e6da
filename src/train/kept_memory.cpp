#include "train/kept_memory.h"

#include <algorithm>
#include <initializer_list>
#include <vector>

namespace lora::train {
namespace {

// Measured, since no arithmetic gives them; benchmarks/plan_check.py shows how well they hold.

constexpr int64_t kMiB = int64_t{1} << 20;
/// What LibTorch's fp32 products on the CPU keep for themselves: so many times the largest weight, up to a limit.
constexpr int64_t kWideProductTimes = 3, kWideProductLimit = 45 * kMiB;
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

/// The transposes of the first backward pass find the holes that the head and the last layer left. Layers that stream leave
/// none, and have no transposes.
double holes_of_packing(const StepSizes& sizes, const PackingHoles& holes) {
  if (sizes.in.streams_layers || holes.by_layers == 0) return holes.by_head;
  return holes.by_layers * static_cast<double>(sizes.layer_count() - 1) / static_cast<double>(sizes.layer_count());
}

bool layers_are_in_few_bits(const StepSizes& sizes) { return Group{&sizes.shapes.layers.front().down}.is_in_few_bits(); }

/// Those that stay until the layer's backward pass, and those that are made again for it.
struct LayerTensors {
  std::vector<int64_t> lasting, recomputed;
};

LayerTensors tensors_of_layer(const StepSizes& sizes) {
  const nn::DecoderLayerShape& layer = sizes.shapes.layers.front();
  const int64_t compute = sizes.compute, state = sizes.N * sizes.D * compute, stream = sizes.N * sizes.D * sizes.stream,
                inner = sizes.N * Group{&layer.down}.inputs() * compute,
                gate_up = sizes.N * Group{&layer.gate_up}.outputs() * compute;
  LayerTensors tensors{.lasting = {stream, state}, .recomputed = {}};  // the layer's inputs
  const auto add = [&](bool lasts, std::initializer_list<int64_t> bytes) {
    auto& list = lasts ? tensors.lasting : tensors.recomputed;
    list.insert(list.end(), bytes);
  };
  const int64_t heads = sizes.P * sizes.W * compute, attended = sizes.P * sizes.Q * compute;
  add(sizes.in.recompute != nn::Recompute::kFull, {stream, state, heads, attended});  // attention
  add(sizes.in.recompute == nn::Recompute::kNone, {state, gate_up, inner, state});    // feed-forward
  return tensors;
}

/// Large tensors less the small ones that find room in their holes.
double holes_of(const std::vector<int64_t>& tensors) {
  int64_t holes = 0;
  for (const int64_t bytes : tensors) holes += bytes < kLargeTensor ? -bytes : bytes;
  return static_cast<double>(std::max<int64_t>(holes, 0));
}

/// Of all layers but the last, whose room the head uses. Recomputed tensors find their room again, unless transposes that
/// the first backward pass leaves between them, weights that are made for a product, or gradients of earlier micro-batches
/// break it up.
double holes_of_layers(const StepSizes& sizes, const PackingHoles& packing) {
  const LayerTensors tensors = tensors_of_layer(sizes);
  const auto others = static_cast<double>(sizes.layer_count() - 1);
  const bool is_broken_up = packing.by_layers > 0 || layers_are_in_few_bits(sizes) || sizes.in.grad_accum > 1;
  const double share = sizes.in.recompute == nn::Recompute::kFull ? kRecomputedShare : kRecomputedHalves;
  const double recomputed = std::max(kRecomputedLayers, is_broken_up ? share * others : 0);
  return others * holes_of(tensors.lasting) + recomputed * holes_of(tensors.recomputed);
}

/// Of one layer's adapters that drop inputs: mask and dropped input, the update and its sum with the product, the sums side
/// by side.
int64_t bytes_beside_products(const StepSizes& sizes) {
  const nn::DecoderLayerShape& layer = sizes.shapes.layers.front();
  int64_t numbers = 0;
  for (const auto* shape : {&layer.qkv, &layer.out, &layer.gate_up, &layer.down}) {
    const Group group{shape};
    if (group.dropouts() == 0) continue;
    for (const auto& linear : *shape) numbers += 2 * sizes.N * linear.dropouts * (linear.in + linear.out);
    if (shape->size() > 1) numbers += sizes.N * group.outputs();
  }
  return numbers * sizes.compute;
}

}  // namespace

int64_t kept_by_heap(const StepSizes& sizes, const PackingHoles& holes) {
  if (!sizes.on_cpu()) return 0;
  const bool accumulates = sizes.in.grad_accum > 1;
  const double of_layers = accumulates                     ? kKeptOfLayersAccumulated
                           : layers_are_in_few_bits(sizes) ? kKeptOfLayersInFewBits
                                                           : kKeptOfLayers,
               of_gradients = accumulates ? kKeptOfGradientsAccumulated : kKeptOfGradients;
  return static_cast<int64_t>(holes_of_packing(sizes, holes) + of_layers * holes_of_layers(sizes, holes) +
                              kKeptOfDropouts * static_cast<double>(sizes.layer_count() * bytes_beside_products(sizes)) +
                              of_gradients * static_cast<double>(sizes.in.parameters.gradients_bytes));
}

int64_t kept_by_products(const StepSizes& sizes) {
  if (!sizes.on_cpu() || sizes.compute_type != at::kFloat) return 0;
  int64_t largest = sizes.shapes.head.numbers();
  for (const auto& layer : sizes.shapes.layers) largest = std::max(largest, layer.gate_up.front().numbers());
  return std::min(kWideProductLimit, kWideProductTimes * largest * 4);
}

double hole_of_copies(int64_t bytes) { return kKeptOfCopies * static_cast<double>(bytes); }

}  // namespace lora::train
