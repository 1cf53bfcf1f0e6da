#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <memory>
#include <string>

#include "lora/nn/attachments.h"

namespace lora::nn {

using at::Tensor;

/// A small network at the output of a block (attention or feed-forward), before the residual sum.
class BlockAdapter : public torch::nn::Module {
 public:
  /// out: what the block makes of the stream x, to be added to it; both (B, S, D). The result takes the place of out.
  virtual Tensor apply(const Tensor& out_BSD, const Tensor& x_BSD) = 0;
};

/// The slot for such networks. Has no parameters of its own; costs nothing while it is empty.
class BlockOutputImpl : public torch::nn::Module {
 public:
  explicit BlockOutputImpl(int64_t hidden) : hidden_(hidden) {}

  Tensor forward(const Tensor& out_BSD, const Tensor& x_BSD);
  int64_t hidden() const { return hidden_; }

  void attach(const std::string& name, const std::shared_ptr<BlockAdapter>& adapter);
  void detach(const std::string& name);

  Attachments<BlockAdapter> slot;

 private:
  int64_t hidden_;
};
TORCH_MODULE(BlockOutput);

}  // namespace lora::nn
