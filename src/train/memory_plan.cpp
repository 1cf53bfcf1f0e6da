#include "lora/train/memory_plan.h"

#include <utility>

#include "train/rehearsal.h"

namespace lora::train {
namespace {

// Measured, since no arithmetic gives them; benchmarks/plan_check.py shows how well they hold.

constexpr int64_t kMiB = int64_t{1} << 20;
/// The program with LibTorch after a run of almost nothing.
constexpr int64_t kProgramBytes = 150 * kMiB;
/// A CUDA context with LibTorch's kernels.
constexpr int64_t kContextBytes = 600 * kMiB;

}  // namespace

MemoryPlan plan_memory(const MemoryInputs& inputs) {
  const StepSizes sizes(inputs);
  const auto [ledger, packed_bytes, holes] = rehearse(inputs);
  MemoryPlan plan;
  plan.parameters = inputs.parameters;
  plan.packed_bytes = static_cast<uint64_t>(packed_bytes);
  plan.activations_bytes = static_cast<uint64_t>(ledger.most(kActivations));
  plan.logits_bytes = static_cast<uint64_t>(ledger.most(kLogits));
  const int64_t program = (sizes.on_cpu() ? kProgramBytes : kContextBytes) + kept_by_products(sizes);
  plan.program_bytes = static_cast<uint64_t>(program) + inputs.data_bytes;
  plan.tensors_bytes = static_cast<uint64_t>(ledger.peak());
  plan.kept_bytes = static_cast<uint64_t>(kept_by_heap(sizes, holes));
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
