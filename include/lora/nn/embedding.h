#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include "lora/nn/adapter.h"
#include "lora/nn/parameter.h"

namespace lora::nn {

/// Sizes of an Embedding.
struct EmbeddingOptions {
  int64_t num_embeddings = 0, embedding_dim = 0;
  ParameterOptions parameters = {};
};

/// Rows of a table by id, and the slot for adapters on it. weight: (num_embeddings, embedding_dim).
class EmbeddingImpl : public torch::nn::Module {
 public:
  explicit EmbeddingImpl(const EmbeddingOptions& options);
  EmbeddingImpl(int64_t num_embeddings, int64_t embedding_dim)
      : EmbeddingImpl(EmbeddingOptions{num_embeddings, embedding_dim, {}}) {}

  /// ids: int64, any shape; result: (..., embedding_dim) in the table's type.
  Tensor forward(const Tensor& ids);

  void attach(const std::string& name, std::shared_ptr<Adapter> adapter);
  void detach(const std::string& name);
  void merge();
  void unmerge();
  void pretty_print(std::ostream& stream) const override;

  EmbeddingOptions options;
  Tensor weight;
  AdapterSlot slot;
};
TORCH_MODULE(Embedding);

}  // namespace lora::nn
