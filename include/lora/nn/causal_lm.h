#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lora/nn/kv_cache.h"
#include "lora/nn/linear_group.h"
#include "lora/nn/prompt.h"
#include "lora/nn/recompute.h"
#include "lora/ops/batch.h"

namespace lora::nn {

/// What predicts the tokens of a batch. N sequences.
struct PredictingStates {
  Tensor hidden_BSD;  ///< of every token, which predicts the next
  /// Of the last virtual token before each sequence (a row, or one of a packed row), which predicts its first token;
  /// undefined: there is none.
  Tensor before_ND;
};

/// A model that predicts the next token: all that training, scoring and generation know of it.
/// B batch, S sequence, D model, V vocabulary.
class CausalLMImpl : public torch::nn::Module {
 public:
  /// States before the output head, (B, S, D). With a cache the batch holds only the new tokens, whose positions
  /// follow those in the cache; its attention mask, where there is one, covers the cache too, and what is masked there or
  /// here takes no position.
  virtual Tensor hidden(const Batch& batch, KvCache* cache = nullptr) = 0;
  /// The same without a cache, with those of virtual tokens that predict. A model that takes embeddings of virtual tokens
  /// overrides it.
  virtual PredictingStates predicting_states(const Batch& batch) { return {hidden(batch), Tensor()}; }
  /// The output head, a slot like every other Linear.
  virtual Linear head() = 0;
  virtual int64_t vocab_size() const = 0;
  virtual int64_t num_layers() const = 0;
  /// Width of all query heads of a layer together; 0: unknown.
  virtual int64_t attention_width() const { return 0; }
  /// Longest sequence the model was made for; virtual tokens are to be taken off (see longest_row).
  virtual int64_t max_positions() const = 0;
  /// In which type its weights are stored, also where the layers keep them in few bits.
  virtual at::ScalarType stored_dtype() const;
  /// Tokens that end a text.
  virtual std::vector<int64_t> end_ids() const { return {}; }
  /// Tokens between prompt and answer that every row must have once; empty: rows are what they are.
  virtual std::vector<int64_t> answer_start() const { return {}; }
  /// Hugging Face's words for what this is, as adapter files of some kinds name it: "llama", "LlamaForCausalLM".
  virtual std::string model_type() const { return {}; }
  virtual std::string model_class() const { return {}; }
  /// Names of the modules that LoRA adapts where nobody names any, as PEFT has them; empty: there is no such rule.
  virtual std::vector<std::string> default_targets() const { return {}; }
  /// Whether the keys of a prefix take positions, so that those of real tokens begin behind them.
  virtual bool prefix_takes_positions() const { return true; }
  /// Whether a pass depends on its batch through shapes and the numbers in device memory alone, so that a GPU may repeat its
  /// launches for another batch of the same shape.
  virtual bool is_repeatable() const { return true; }
  /// What virtual tokens have to fit; nothing: the model takes none.
  virtual std::optional<PromptShape> prompt_shape() const { return std::nullopt; }
  /// Gives a head that is the embeddings' own table numbers of its own, equal to them, from where the two may differ.
  virtual void untie_head() {}
  /// The table of token embeddings (V, D); undefined: the model shows none.
  virtual Tensor input_embeddings() { return {}; }
  /// Longest sequence that has room beside the virtual tokens of now.
  int64_t longest_row() const { return max_positions() - num_virtual_positions(); }
  /// Positions that the virtual tokens of now take.
  int64_t num_virtual_positions() const;
  int64_t num_virtual_tokens() const { return prompts_ ? prompts_->length() : 0; }
  /// Whether virtual tokens that are embeddings stand before every sequence: the last of them predicts its first token. Keys
  /// and values predict nothing.
  bool predicts_first_tokens() const { return prompts_ && prompts_->embeddings() != nullptr; }
  /// How many of the batch's labels are targets of this model.
  int64_t num_targets(const Batch& batch) const {
    return batch.num_targets + (predicts_first_tokens() ? batch.num_first_targets : 0);
  }

  /// The slot of virtual tokens; null while nothing was ever attached. hidden() uses what is active there, and gives the
  /// states of real tokens alone.
  const std::shared_ptr<PromptSlotImpl>& prompts() const { return prompts_; }
  void attach_prompt(const std::string& name, const std::shared_ptr<Prompt>& prompt);

  /// How many new tokens a pass behind a cache may take so that each has, bit for bit, the state, the logits and the place in
  /// the cache that a pass of its own would give it: what several tokens at once may rely on. Asked without gradients.
  virtual int64_t independent_rows() { return 1; }

  /// The head as a group, through which the loss finds its packed weight; null: a model that has none.
  virtual LinearGroup* head_group() { return nullptr; }

  /// The head's output for some states: (..., D) -> (..., V).
  Tensor logits_of(const Tensor& states);
  /// Logits (B, S, V) in fp32 (double for double).
  Tensor forward(const Batch& batch, KvCache* cache = nullptr);

  FastPaths fast_paths;                          ///< which optimisations run
  Recompute recompute = Recompute::kNone;        ///< what is computed again in the backward pass
  std::shared_ptr<ActivationStore> activations;  ///< keeps what recomputation keeps; null: the device does

 private:
  std::shared_ptr<PromptSlotImpl> prompts_;
};
TORCH_MODULE(CausalLM);

}  // namespace lora::nn
