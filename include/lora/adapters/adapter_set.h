#pragma once

#include <torch/nn/module.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "lora/adapters/lora.h"

namespace lora {

/// One named adapter over a whole model: its slots, its fully trained modules, its options. A
/// handle; copies share.
class AdapterSet {
 public:
  /// One adapted module.
  struct Slot {
    std::string path;                  ///< "model.layers.0.self_attn.q_proj"
    nn::Linear linear{nullptr};        ///< either this
    nn::Embedding embedding{nullptr};  ///< or this
    std::shared_ptr<nn::Adapter> adapter = nullptr;
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
  const LoraOptions& options() const;
  const std::vector<Slot>& slots() const;
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

  /// Switches the adapters of all its slots (this one's and others') on or off, and with them the
  /// values of the parameters that it trains whole: off gives the base model. Unmerges before
  /// switching off.
  void set_enabled(bool enabled);
  /// Folds the active adapters of its slots into the base weights, and takes them out again.
  /// Merging is all or nothing: NonFiniteError leaves every weight as it was. Throws ConfigError
  /// when a slot is merged or switched off.
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
