#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lora/adapters/adapter_set.h"
#include "lora/core/path.h"

namespace lora {

/// The adapters that work together on one model: none, one, or several under different names. Handles; copies share.
class AdapterSets {
 public:
  AdapterSets() = default;
  /// Of one; an empty handle is none.
  AdapterSets(AdapterSet one);                   // NOLINT(google-explicit-constructor)
  AdapterSets(std::vector<AdapterSet> several);  // NOLINT(google-explicit-constructor)

  explicit operator bool() const { return !sets_.empty(); }
  size_t size() const { return sets_.size(); }
  auto begin() const { return sets_.begin(); }
  auto end() const { return sets_.end(); }
  const std::vector<AdapterSet>& all() const { return sets_; }

  /// What AdapterSet has under these names, of all of them in their order.
  std::vector<at::Tensor> parameters() const;
  std::vector<std::pair<std::string, at::Tensor>> named_parameters() const;
  at::Tensor regularizer() const;
  void after_step(int64_t step, bool has_gradients);
  void set_enabled(bool enabled);
  /// All or nothing as with one; a slot that several share is merged once, with all of its active adapters.
  void merge();

  /// Ranks that AdaLoRA's modules may have together after `step`; nothing without an adapter that allocates.
  std::optional<int64_t> rank_budget(int64_t step) const;
  /// Whether one allocates after `step`.
  bool allocates(int64_t step) const;
  /// Modules whose ranks are allocated, and these ranks.
  std::vector<std::string> rank_modules() const;
  std::vector<int64_t> ranks() const;

 private:
  std::vector<AdapterSet> sets_;
};

/// Makes these the model's active adapters, in their order; see set_active_adapters, also for its errors.
void activate_together(torch::nn::Module& model, const AdapterSets& sets);

/// The folder of the adapter number `index` inside that of all: the first one's is `directory` itself, another's
/// `directory/<name>`, as PEFT lays several adapters out.
Path adapter_directory(const AdapterSets& sets, size_t index, const Path& directory);

/// Writes each as save_adapter does, into its folder; `directory` changes as a whole or not at all. Throws IoError.
void save_adapters(const AdapterSets& sets, const Path& directory);

}  // namespace lora
