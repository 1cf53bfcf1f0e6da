#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include "lora/nn/adapter.h"
#include "lora/nn/parameter.h"

namespace lora::nn {

struct LinearOptions {
  int64_t in_features = 0, out_features = 0;
  bool bias = false;
  ParameterOptions parameters = {};
};

/// How a layer's weight is cut over a tensor-parallel group. A column-cut layer holds out/size rows, a row-cut one
/// in/size columns; adapters take their shapes from here.
struct LinearLayout {
  enum class Cut { kReplicated, kColumn, kRow };
  Cut cut = Cut::kReplicated;
  int64_t in_features = 0, out_features = 0;  ///< of the whole layer
  int64_t rank = 0, size = 1;
};

/// y = x W^T + b, and the slot where adapters attach. forward is virtual on purpose, so that cut layers can stand in.
///
/// weight (out, in) and bias (out) keep these names and any float type; they are cast to the compute type when that
/// differs. No gradient of a frozen weight is ever formed. Derives from torch::nn::Module, not Cloneable: attached
/// adapters are children that a clone's reset() would not have.
class LinearImpl : public torch::nn::Module {
 public:
  explicit LinearImpl(const LinearOptions& options);
  LinearImpl(int64_t in_features, int64_t out_features, bool bias = false)
      : LinearImpl(LinearOptions{in_features, out_features, bias, {}}) {}

  /// x: (..., in); result: (..., out) in autocast's type when it is on, else in the type of x.
  virtual Tensor forward(const Tensor& x);
  /// The base product alone.
  virtual Tensor base_forward(const Tensor& x);
  virtual LinearLayout layout() const;

  /// Attaches an adapter under `name` and makes it a child module; it is inactive until set active.
  /// Throws ConfigError for a name that is empty, holds a dot or is taken.
  void attach(const std::string& name, std::shared_ptr<Adapter> adapter);
  /// Detaches it (unmerging first). Nothing when there is none.
  void detach(const std::string& name);

  /// Uses another layer's tensor as this one's weight from now on: a tied output head.
  void tie_weight(const Tensor& shared);

  void merge() { slot.merge(weight); }
  void unmerge() { slot.unmerge(weight); }
  void pretty_print(std::ostream& stream) const override;

  LinearOptions options;
  Tensor weight, bias;
  AdapterSlot slot;
};
TORCH_MODULE(Linear);

}  // namespace lora::nn
