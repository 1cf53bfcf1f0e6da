// What an AdapterSet stands on, and the record of all sets that a model carries.
#pragma once

#include <torch/nn/module.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lora/adapters/adapter_set.h"

namespace lora {

struct AdapterSet::State {
  std::string name;
  MethodOptions options;
  std::vector<Slot> slots;
  std::vector<BlockSlot> blocks;
  std::shared_ptr<PromptEncoder> prompt;
  std::shared_ptr<nn::PromptSlotImpl> prompt_slot;  ///< where it is attached
  nn::PromptShape prompt_shape;
  std::string model_type, model_class;  ///< empty: a model that does not say
  std::shared_ptr<RankAllocator> allocator;
  std::vector<SavedParameter> saved, biases;
  std::vector<Slot> tables;                           ///< the model's embeddings and heads, without adapters
  std::vector<const at::TensorImpl*> shared_weights;  ///< of slots with rows of tokens: those that two modules have
  /// Factors of which some numbers are held at zero, and how many (see train_fused_rows).
  std::vector<std::pair<at::Tensor, int64_t>> held;
  /// Its place among the active adapters; empty when it is not active.
  std::optional<size_t> active_position;
  /// True while the model's own parameters hold the trained values of `saved` and `biases`.
  bool trained_values_in_model = false;

  /// Exchanges the two values of every parameter that is trained whole, when they stand otherwise.
  void put_trained_values(bool into_model);
  void set_requires_grad(bool required);
  /// Everything that training or loading sets, by name: parameters and buffers of what the method attached, and the values of
  /// parameters that are trained whole.
  std::vector<std::pair<std::string, at::Tensor>> trained_tensors() const;
  /// Whether an adapter file cannot give them all back.
  bool file_falls_short() const;
};

namespace adapters {

/// A child module without parameters that the model owns, so that the sets live as long as it does
/// and are found again from the model alone. The sets refer to the model's layers, never to the
/// model itself: no cycle.
class Registry : public torch::nn::Module {
 public:
  static constexpr const char* kChildName = "lora_adapters";
  std::vector<AdapterSet> sets;
};

/// The registry of `model` itself, made when there is none.
Registry& registry_of(torch::nn::Module& model);
/// Every registry in the tree of `model`.
std::vector<std::shared_ptr<Registry>> registries_in(torch::nn::Module& model);

/// The slot of whichever layer this is.
nn::AdapterSlot& slot_of(const AdapterSet::Slot& slot);
/// Its base weight for its shape, type and device; the values of a released one are not there.
const at::Tensor& weight_form_of(const AdapterSet::Slot& slot);
/// The values; of a released weight a copy.
at::Tensor weight_value_of(const AdapterSet::Slot& slot);
/// Whether its update counts from factors that it started with (LoraLinear::start_from).
bool has_start(const AdapterSet::Slot& slot);
/// Folds the slot's adapters into its weight, and takes them out again.
void merge(const AdapterSet::Slot& slot);
void unmerge(const AdapterSet::Slot& slot);
/// ConfigError where no weight can hold what the adapter does, or a slot of it is switched off.
void require_mergeable(const AdapterSet& adapters);
/// Merges different slots, all of them or none.
void merge_all(const std::vector<AdapterSet::Slot>& slots);

}  // namespace adapters
}  // namespace lora
