#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "lora/nn/block_output.h"

namespace lora {

/// Bottleneck adapters: small networks at the outputs of attention and feed-forward blocks, under AdapterHub's names and
/// with its meaning of every option. Houlsby et al. 2019: both places. Pfeiffer et al. 2020: after feed-forward only, reading
/// the sum with the stream. Parallel (He et al. 2022): beside feed-forward, reading what it reads.
struct BottleneckOptions {
  bool mh_adapter = false;             ///< after attention
  bool output_adapter = true;          ///< after feed-forward
  double reduction_factor = 16;        ///< hidden size / size of the bottleneck
  std::string non_linearity = "relu";  ///< relu | swish (silu) | gelu | gelu_new | tanh | sigmoid | leakyrelu | elu
  bool original_ln_before = true;      ///< the network reads the block's output plus the stream, else the output alone
  bool is_parallel = false;            ///< the network reads the stream before the block
  double scaling = 1;                  ///< of the network's output
  bool learn_scaling = false;          ///< "scaling": "learned"; starts at 1
  double dropout = 0;                  ///< before the network, in training
  /// bert (normal 0.02, zero biases; the network begins small) | zero (its last layer begins at zero)
  std::string init = "bert";
  std::vector<int64_t> leave_out = {};  ///< layers without
  std::string base_model_name = {};
};

/// houlsby | pfeiffer | parallel, as AdapterHub sets them up. Throws ConfigError for another name.
BottleneckOptions bottleneck_preset(const std::string& name);

/// up(f(down(input))) * scaling, added to the block's output. adapter_down.0.weight (bottleneck, hidden), adapter_up.weight
/// (hidden, bottleneck), with biases; scaling (1) when it is learned; fp32.
class BottleneckAdapter : public nn::BlockAdapter {
 public:
  /// Throws ConfigError for options out of range.
  BottleneckAdapter(int64_t hidden, const BottleneckOptions& options);
  at::Tensor apply(const at::Tensor& out_BSD, const at::Tensor& x_BSD) override;
  const BottleneckOptions& options() const { return options_; }
  /// Numbers between the two layers.
  int64_t size() const { return down_->weight.size(0); }

 private:
  struct Layer : torch::nn::Module {
    at::Tensor weight, bias;
  };
  static std::shared_ptr<Layer> make_layer(int64_t inputs, int64_t outputs, bool zero);

  BottleneckOptions options_;
  std::shared_ptr<Layer> down_, up_;
  at::Tensor scaling_;
};

}  // namespace lora
