#include "lora/nn/embedding.h"

#include "core/check.h"
#include "lora/nn/probe.h"
#include "lora/nn/row_adapters.h"
#include "nn/parameters.h"

namespace lora::nn {

EmbeddingImpl::EmbeddingImpl(const EmbeddingOptions& options_) : options(options_) {
  weight = register_parameter("weight", new_parameter({options.num_embeddings, options.embedding_dim}, options.parameters));
  if (!options.parameters.initialize) return;
  const torch::NoGradGuard no_grad;
  weight.normal_();
}

Tensor EmbeddingImpl::forward(const Tensor& ids) {
  Tensor y = at::embedding(weight, ids);
  if (rows_are_chosen(slot)) return observed(*this, add_chosen_rows(slot, y, ids, /*ids=*/true));
  for (const auto& adapter : slot.contributing()) y = adapter->apply_to_rows(ids, y, weight);
  return observed(*this, std::move(y));
}

void EmbeddingImpl::attach(const std::string& name, std::shared_ptr<Adapter> adapter) {
  slot.add(name, adapter);
  register_module(name, std::move(adapter));
}

void EmbeddingImpl::detach(const std::string& name) {
  if (!slot.find(name)) return;
  unmerge();
  slot.remove(name);
  unregister_module(name);
}

void EmbeddingImpl::merge() {
  Tensor no_bias;
  slot.merge(weight, no_bias);
}

void EmbeddingImpl::unmerge() {
  Tensor no_bias;
  slot.unmerge(weight, no_bias);
}

void EmbeddingImpl::pretty_print(std::ostream& stream) const {
  stream << fmt::format("lora::nn::Embedding(num_embeddings={}, embedding_dim={}, adapters=[{}])", options.num_embeddings,
                        options.embedding_dim, fmt::join(slot.names(), ", "));
}

}  // namespace lora::nn
