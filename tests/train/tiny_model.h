// A causal language model of a few hundred parameters, rows for it, and looks at its values.
#pragma once

#include <torch/nn/modules/container/modulelist.h>

#include <map>
#include <span>
#include <string>
#include <vector>

#include "data/listed_rows.h"
#include "lora/core/random.h"
#include "lora/data/collate.h"
#include "lora/nn/causal_lm.h"
#include "lora/nn/embedding.h"
#include "lora/nn/norm.h"
#include "lora/ops/device.h"
#include "lora/train/step.h"

namespace lora::testing {

constexpr int64_t kTinyVocab = 17;

/// x + proj(norm(mean of x over the tokens so far)).
class TinyLayerImpl : public torch::nn::Module {
 public:
  explicit TinyLayerImpl(int64_t width)
      : norm(register_module("norm", nn::RmsNorm(width, 1e-6))), proj(register_module("proj", nn::Linear(width, width))) {}

  at::Tensor forward(const at::Tensor& x_BSD) {
    const auto count = at::arange(1, x_BSD.size(1) + 1, x_BSD.options()).unsqueeze(1);
    return x_BSD + proj->forward(norm->forward(x_BSD.cumsum(1) / count));
  }

  nn::RmsNorm norm{nullptr};
  nn::Linear proj{nullptr};
};
TORCH_MODULE(TinyLayer);

/// Rows are independent and no token sees a later one, as in every model of this library.
class TinyModelImpl : public nn::CausalLMImpl {
 public:
  explicit TinyModelImpl(uint64_t seed = 3, int64_t width = 8, int64_t layer_count = 2) {
    seed_generators(seed);
    embed = register_module("embed", nn::Embedding(kTinyVocab, width));
    layers = register_module("layers", torch::nn::ModuleList());
    for (int64_t i = 0; i < layer_count; ++i) layers->push_back(TinyLayer(width));
    norm = register_module("norm", nn::RmsNorm(width, 1e-6));
    lm_head = register_module("lm_head", nn::Linear(width, kTinyVocab));
  }

  at::Tensor hidden(const Batch& batch, nn::KvCache*) override {
    at::Tensor x_BSD = embed->forward(batch.input_ids_BS);
    for (const auto& layer : *layers) x_BSD = layer->as<TinyLayerImpl>()->forward(x_BSD);
    return norm->forward(x_BSD);
  }
  nn::Linear head() override { return lm_head; }
  int64_t vocab_size() const override { return kTinyVocab; }
  int64_t num_layers() const override { return static_cast<int64_t>(layers->size()); }
  int64_t max_positions() const override { return 64; }

  nn::Embedding embed{nullptr};
  torch::nn::ModuleList layers;
  nn::RmsNorm norm{nullptr};
  nn::Linear lm_head{nullptr};
};
TORCH_MODULE(TinyModel);

/// Rows of different lengths, numbered from 1; the first two tokens of each are no targets.
inline ListedRows tiny_dataset(int64_t rows, uint64_t seed = 1) {
  SplitMix64 random(seed);
  ListedRows dataset;
  for (int64_t row = 1; row <= rows; ++row) {
    data::Example example;
    example.row = row;
    const uint64_t length = 4 + random.below(6);
    for (uint64_t i = 0; i < length; ++i) {
      example.input_ids.push_back(static_cast<int32_t>(random.below(kTinyVocab)));
      example.labels.push_back(i < 2 ? static_cast<int32_t>(kIgnoreLabel) : example.input_ids[i]);
    }
    dataset.examples.push_back(std::move(example));
  }
  return dataset;
}

/// The rows in batches of `size`.
inline std::vector<Batch> batches_of(const ListedRows& dataset, size_t size) {
  std::vector<const data::Example*> examples;
  for (const auto& example : dataset.examples) examples.push_back(&example);
  std::vector<Batch> batches;
  for (size_t begin = 0; begin < examples.size(); begin += size) {
    const size_t count = std::min(size, examples.size() - begin);
    batches.push_back(data::collate(std::span(examples).subspan(begin, count), 0));
  }
  return batches;
}

using Values = std::map<std::string, at::Tensor>;

/// A copy of every parameter.
inline Values values_of(const torch::nn::Module& model) {
  Values values;
  for (const auto& entry : model.named_parameters()) {
    values[entry.key()] = entry.value().detach().clone();
  }
  return values;
}

inline Values values_of(const train::Optimizer& optimizer) {
  Values values;
  for (const auto& [name, tensor] : optimizer.state()) values[name] = tensor.clone();
  return values;
}

/// Same names, types and bits (NaN equals itself).
inline bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  if (a.scalar_type() != b.scalar_type() || a.sizes() != b.sizes()) return false;
  const auto bytes = [](const at::Tensor& tensor) { return tensor.detach().contiguous().reshape(-1).view(at::kByte); };
  return bytes(a).equal(bytes(b));
}

inline bool same_bits(const Values& a, const Values& b) {
  if (a.size() != b.size()) return false;
  for (const auto& [name, tensor] : a) {
    if (!b.contains(name) || !same_bits(tensor, b.at(name))) return false;
  }
  return true;
}

/// Largest difference of any value.
inline double distance(const Values& a, const Values& b) {
  double largest = a.size() == b.size() ? 0 : 1e9;
  for (const auto& [name, tensor] : a) {
    largest = std::max(largest, (tensor - b.at(name)).abs().max().item<double>());
  }
  return largest;
}

}  // namespace lora::testing
