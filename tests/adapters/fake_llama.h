// Small models with the names of real ones. FakeLlama is no Llama: its layers only pass values
// through every weight.
#pragma once

#include <ATen/ATen.h>
#include <torch/nn/module.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/utils.h>

#include "lora/nn/causal_lm.h"
#include "lora/nn/embedding.h"
#include "lora/nn/linear.h"
#include "lora/nn/norm.h"

namespace lora::testing {

struct FakeSizes {
  int64_t hidden = 64, intermediate = 192, vocab = 128, layers = 2;
};

struct FakeAttention : torch::nn::Module {
  explicit FakeAttention(const FakeSizes& sizes)
      : q_proj(register_module("q_proj", nn::Linear(sizes.hidden, sizes.hidden))),
        k_proj(register_module("k_proj", nn::Linear(sizes.hidden, sizes.hidden))),
        v_proj(register_module("v_proj", nn::Linear(sizes.hidden, sizes.hidden))),
        o_proj(register_module("o_proj", nn::Linear(sizes.hidden, sizes.hidden))) {}
  at::Tensor forward(const at::Tensor& x) {
    return o_proj->forward(at::tanh(q_proj->forward(x) * k_proj->forward(x)) + v_proj->forward(x));
  }
  nn::Linear q_proj, k_proj, v_proj, o_proj;
};

struct FakeMlp : torch::nn::Module {
  explicit FakeMlp(const FakeSizes& sizes)
      : gate_proj(register_module("gate_proj", nn::Linear(sizes.hidden, sizes.intermediate))),
        up_proj(register_module("up_proj", nn::Linear(sizes.hidden, sizes.intermediate))),
        down_proj(register_module("down_proj", nn::Linear(sizes.intermediate, sizes.hidden))) {}
  at::Tensor forward(const at::Tensor& x) { return down_proj->forward(at::tanh(gate_proj->forward(x)) * up_proj->forward(x)); }
  nn::Linear gate_proj, up_proj, down_proj;
};

struct FakeLayer : torch::nn::Module {
  explicit FakeLayer(const FakeSizes& sizes)
      : self_attn(register_module("self_attn", std::make_shared<FakeAttention>(sizes))),
        mlp(register_module("mlp", std::make_shared<FakeMlp>(sizes))),
        input_layernorm(register_module("input_layernorm", nn::RmsNorm(sizes.hidden, 1e-5))),
        post_attention_layernorm(register_module("post_attention_layernorm", nn::RmsNorm(sizes.hidden, 1e-5))) {}
  at::Tensor forward(const at::Tensor& x) {
    const auto h = x + self_attn->forward(input_layernorm->forward(x));
    return h + mlp->forward(post_attention_layernorm->forward(h));
  }
  std::shared_ptr<FakeAttention> self_attn;
  std::shared_ptr<FakeMlp> mlp;
  nn::RmsNorm input_layernorm, post_attention_layernorm;
};

struct FakeTrunk : torch::nn::Module {
  explicit FakeTrunk(const FakeSizes& sizes)
      : embed_tokens(register_module("embed_tokens", nn::Embedding(sizes.vocab, sizes.hidden))),
        layers(register_module("layers", torch::nn::ModuleList())),
        norm(register_module("norm", nn::RmsNorm(sizes.hidden, 1e-5))) {
    for (int64_t i = 0; i < sizes.layers; ++i) layers->push_back(std::make_shared<FakeLayer>(sizes));
  }
  at::Tensor forward(const at::Tensor& ids) {
    auto h = embed_tokens->forward(ids);
    for (const auto& layer : *layers) h = layer->as<FakeLayer>()->forward(h);
    return norm->forward(h);
  }
  nn::Embedding embed_tokens;
  torch::nn::ModuleList layers;
  nn::RmsNorm norm;
};

/// The module tree and shapes of the tiny Llama that the PEFT fixtures are for.
struct FakeLlama : torch::nn::Module {
  explicit FakeLlama(const FakeSizes& sizes = {})
      : model(register_module("model", std::make_shared<FakeTrunk>(sizes))),
        lm_head(register_module("lm_head", nn::Linear(sizes.hidden, sizes.vocab))) {}
  at::Tensor forward(const at::Tensor& ids) { return lm_head->forward(model->forward(ids)); }
  FakeAttention& attention(size_t layer) { return *model->layers[layer]->as<FakeLayer>()->self_attn; }
  std::shared_ptr<FakeTrunk> model;
  nn::Linear lm_head;
};

/// Two layers with biases: the model of tests/reference/make_bias_reference.py.
struct Mlp : torch::nn::Module {
  Mlp() : up(register_module("up", nn::Linear(6, 8, true))), down(register_module("down", nn::Linear(8, 4, true))) {}
  at::Tensor forward(const at::Tensor& x) { return down->forward(at::tanh(up->forward(x))); }
  nn::Linear up, down;
};

/// A causal language model whose head has an unusual name.
struct OddHead : nn::CausalLMImpl {
  OddHead() : body(register_module("body", nn::Linear(4, 4))), classifier(register_module("classifier", nn::Linear(4, 6))) {}
  at::Tensor hidden(const Batch&, nn::KvCache*) override { return {}; }
  nn::Linear head() override { return classifier; }
  int64_t vocab_size() const override { return 6; }
  int64_t num_layers() const override { return 1; }
  int64_t max_positions() const override { return 8; }
  nn::Linear body, classifier;
};

inline at::Tensor some_ids() { return at::randint(0, 128, {2, 7}, at::kLong); }

inline double difference(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

inline void randomize(const std::vector<at::Tensor>& tensors, double deviation = 0.1) {
  const torch::NoGradGuard no_grad;
  for (auto tensor : tensors) tensor.normal_(0, deviation);
}

}  // namespace lora::testing
