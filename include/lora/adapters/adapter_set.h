#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "lora/adapters/method.h"
#include "lora/nn/block_output.h"
#include "lora/nn/embedding.h"
#include "lora/nn/linear.h"
#include "lora/nn/prompt.h"

namespace lora {

/// One named adapter over a whole model: what its method attached, its fully trained modules, its options. A handle;
/// copies share.
class AdapterSet {
 public:
  /// One adapted module.
  struct Slot {
    std::string path;                  ///< "model.layers.0.self_attn.q_proj"
    nn::Linear linear{nullptr};        ///< either this
    nn::Embedding embedding{nullptr};  ///< or this
    std::shared_ptr<nn::Adapter> adapter = nullptr;
  };
  /// One adapted block output.
  struct BlockSlot {
    std::string path;  ///< "model.layers.0.output_adapters"
    nn::BlockOutput block{nullptr};
    std::shared_ptr<nn::BlockAdapter> adapter = nullptr;
  };
  /// One parameter that is trained whole: of a module in modules_to_save, or a bias. While the
  /// adapter is active and enabled the model's own parameter holds the trained value (fp32, double
  /// for double) and `other` the base's; otherwise the other way round.
  struct SavedParameter {
    std::string name;      ///< "lm_head.weight"
    at::Tensor parameter;  ///< the model's own
    at::Tensor other;
  };

  const std::string& name() const;
  /// As given to inject, except that "all-linear" is replaced by the names it stood for.
  const MethodOptions& options() const;
  /// Adapted weights, adapted block outputs and virtual tokens; a method has one of the three.
  const std::vector<Slot>& slots() const;
  const std::vector<BlockSlot>& blocks() const;
  const std::shared_ptr<PromptEncoder>& prompt() const;
  const std::vector<SavedParameter>& saved_parameters() const;
  /// Base biases that train with this adapter (bias: all | lora_only).
  const std::vector<SavedParameter>& biases() const;
  /// True when its slots add it in forward, unless they are switched off.
  bool is_active() const;

  /// Everything this adapter trains: names as the model's named_parameters() has them, and the
  /// tensors.
  std::vector<std::pair<std::string, at::Tensor>> named_parameters() const;
  std::vector<at::Tensor> parameters() const;
  std::vector<std::string> names() const;
  /// Sum of the methods' regularisers; undefined when there are none.
  at::Tensor regularizer() const;
  /// To be called after every optimizer step with the gradients still in place, unscaled: AdaLoRA allocates its ranks. A step
  /// that was skipped has no gradients. Nothing for other methods.
  void after_step(int64_t step, bool has_gradients);
  /// AdaLoRA's allocator; null for other methods, and for an adapter whose ranks are final.
  const std::shared_ptr<RankAllocator>& allocator() const;
  /// What a resumed run needs beyond the adapter's file, by name: unpruned tensors, averages, networks that make virtual
  /// tokens. Empty when the file says it all.
  std::map<std::string, at::Tensor> training_state() const;
  /// Throws ShapeError, with nothing changed, unless names and shapes are those of training_state().
  void load_training_state(const std::map<std::string, at::Tensor>& state);

  /// Switches the adapters of all its slots (this one's and others') on or off, and with them the
  /// values of the parameters that it trains whole: off gives the base model. Unmerges before
  /// switching off.
  void set_enabled(bool enabled);
  /// Folds the active adapters of its slots into the base weights, and takes them out again.
  /// Merging is all or nothing: NonFiniteError leaves every weight as it was. Throws ConfigError
  /// when a slot is merged or switched off, and for a method that no weight can hold.
  void merge();
  void unmerge();

  struct State;
  explicit AdapterSet(std::shared_ptr<State> state) : state_(std::move(state)) {}
  AdapterSet() = default;
  explicit operator bool() const { return state_ != nullptr; }
  State& state() const { return *state_; }

 private:
  std::shared_ptr<State> state_;
};

}  // namespace lora
