#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <memory>
#include <string>

#include "lora/nn/attachments.h"

namespace lora::nn {

using at::Tensor;

/// What a model's virtual tokens have to fit.
struct PromptShape {
  int64_t layers = 0, heads = 0, kv_heads = 0, head_dim = 0, hidden = 0;
};

/// Keys and values of virtual tokens in one layer, (G, P, K); undefined: none.
struct PrefixKeys {
  Tensor k_GPK, v_GPK;
};

/// Virtual tokens that stand before every sequence: learned embeddings, or learned keys and values of every layer.
/// P virtual tokens, D model, L layers, G key/value heads, K head size.
class Prompt : public torch::nn::Module {
 public:
  virtual int64_t length() const = 0;
  /// Keys and values, else embeddings.
  virtual bool is_prefix() const = 0;
  /// In fp32 (double for double): embeddings (P, D), or keys and values (2 L, G, P, K), a layer's at 2 l and 2 l + 1, as the
  /// attention of that layer sees them, unrotated.
  virtual Tensor values() = 0;
};

/// The virtual tokens of one model: at most one prefix and one prompt of embeddings take part at a time. A child module
/// "prompt_encoder", which names the parameters as PEFT does ("prompt_encoder.default.embedding.weight").
class PromptSlotImpl : public torch::nn::Module, public Attachments<Prompt> {
 public:
  static constexpr const char* kChildName = "prompt_encoder";

  void attach(const std::string& name, const std::shared_ptr<Prompt>& prompt);
  void detach(const std::string& name);

  /// Null when none is active.
  std::shared_ptr<Prompt> prefix() const { return of_kind(true); }
  std::shared_ptr<Prompt> embeddings() const { return of_kind(false); }
  /// Virtual tokens of both.
  int64_t length() const;

 private:
  std::shared_ptr<Prompt> of_kind(bool is_prefix) const;
};

}  // namespace lora::nn
