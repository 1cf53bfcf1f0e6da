#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "lora/adapters/trainable_tokens.h"
#include "lora/nn/adapter.h"
#include "lora/nn/linear.h"

namespace lora {

class AdapterSet;

/// AdaLoRA (Zhang et al. 2023): updates B diag(E) A whose ranks are allocated while training, with PEFT's meaning of every
/// option.
struct AdaLoraOptions {
  int64_t init_rank = 12;   ///< of every module at the start
  int64_t target_rank = 8;  ///< of a module on average at the end
  double alpha = 8;         ///< the scale is alpha / (init_rank + 1e-5); 0 or less: init_rank
  double dropout = 0;
  int64_t initial_steps = 0;          ///< tinit: steps before ranks fall
  int64_t final_steps = 0;            ///< tfinal: steps at the end with the ranks that were found
  int64_t interval = 1;               ///< deltaT: steps between allocations
  double beta1 = 0.85, beta2 = 0.85;  ///< of the averages of importance and of its uncertainty
  double orth_reg_weight = 0.5;
  int64_t total_steps = 0;    ///< total_step: of the whole training
  std::string bias = "none";  ///< none | all | lora_only

  std::variant<std::vector<std::string>, std::string> targets = std::vector<std::string>{"q_proj", "v_proj"};
  std::variant<std::vector<std::string>, std::string> exclude = std::vector<std::string>{};
  std::optional<std::vector<int64_t>> layers_to_transform = {};
  std::vector<std::string> layers_pattern = {};
  std::vector<std::string> modules_to_save = {};
  std::optional<TokenIndices> token_indices = {};  ///< rows of embeddings that train beside the updates
  /// Ranks kept by a training that is over ("<module>.lora_E" -> which of init_rank): the adapter has these, and no more
  /// allocation takes place.
  std::optional<std::map<std::string, std::vector<bool>>> rank_pattern = {};
  std::string base_model_name = {};  ///< written into adapter_config.json
};

/// Of B diag(E) A.
double adalora_scale(const AdaLoraOptions& options);

/// Throws ConfigError for options that contradict each other, and for training ones without total_steps.
void check_adalora(const AdaLoraOptions& options, bool for_training);

/// The update of one Linear: scale * B diag(E) A, fp32. lora_A (rank, in), lora_B (out, rank), lora_E (rank, 1); the rank
/// may be 0. E starts at zero, A and B normal with a deviation of 0.02.
class AdaLoraLinear : public nn::Adapter {
 public:
  /// regularizer_weight: of |A A^T - I| + |B^T B - I|.
  AdaLoraLinear(const nn::LinearLayout& layout, int64_t rank, const AdaLoraOptions& options, double regularizer_weight);

  at::Tensor delta(const at::Tensor& x) override;
  bool adds() const override { return lora_E.size(0) > 0; }
  std::optional<nn::LowRankFactors> low_rank() const override;
  at::Tensor weight_delta() const override;
  /// Frobenius norms, not squared; their gradient at exactly zero is zero. Source: equation 4; PEFT adalora/model.py.
  at::Tensor regularizer() const override;
  double scale() const { return scale_; }

  at::Tensor lora_A, lora_B, lora_E;

 private:
  double scale_, dropout_, regularizer_weight_;
};

/// Which ranks the modules of one AdaLoRA adapter keep. Called after every optimizer step, with the gradients that the
/// step used (unscaled) still in place. Source: PEFT 0.21 tuners/adalora/layer.py RankAllocator; section 3.2 and 3.3.
class RankAllocator {
 public:
  using Modules = std::vector<std::pair<std::string, std::shared_ptr<AdaLoraLinear>>>;
  RankAllocator(const AdaLoraOptions& options, Modules modules);

  /// After optimizer step `step` (from 1): averages importances, and sets entries of E to zero where the schedule says so.
  /// A step that was skipped since its gradients were not finite has none and leaves the averages.
  void after_step(int64_t step, bool has_gradients);

  /// Ranks that all modules may have together after this step.
  int64_t budget(int64_t step) const;
  /// Whether a step allocates.
  bool allocates(int64_t step) const;
  /// What the last allocation kept, per module in order; nothing before the first.
  const std::optional<std::vector<std::vector<bool>>>& kept() const { return kept_; }
  /// Ranks per module now.
  std::vector<int64_t> ranks() const;
  std::vector<std::string> paths() const;

  /// The averages and what was kept, for a run that is resumed.
  std::map<std::string, at::Tensor> state() const;
  void load_state(const std::map<std::string, at::Tensor>& state);

 private:
  struct Averages {
    at::Tensor importance, uncertainty;
  };
  void average(const std::string& name, const at::Tensor& parameter);
  at::Tensor score(const std::string& name) const;
  void allocate(int64_t budget);
  void apply_kept();

  AdaLoraOptions options_;
  Modules modules_;
  std::map<std::string, Averages> averages_;  ///< by "<module>.lora_A" ...
  std::optional<std::vector<std::vector<bool>>> kept_;
};

/// Lets the ranks of an AdaLoRA that came from files be allocated from step 1 on, as those of a fresh one are. Does nothing for
/// other methods, and where the file says which ranks a finished training kept. Throws ConfigError as check_adalora does.
void allocate_ranks(const AdapterSet& adapters);

}  // namespace lora
