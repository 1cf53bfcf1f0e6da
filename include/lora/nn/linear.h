#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lora/nn/adapter.h"
#include "lora/nn/parameter.h"
#include "lora/nn/weight_stream.h"
#include "lora/ops/quantized.h"

namespace lora::nn {

/// Sizes of a Linear.
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
  /// x W^T without the bias: (..., in) -> (..., out). Gradients reach x, and a trained weight.
  Tensor times_weight(const Tensor& x);
  virtual LinearLayout layout() const;

  /// Attaches an adapter under `name` and makes it a child module; it is inactive until set active.
  /// Throws ConfigError for a name that is empty, holds a dot or is taken.
  void attach(const std::string& name, std::shared_ptr<Adapter> adapter);
  /// Detaches it (unmerging first). Nothing when there is none.
  void detach(const std::string& name);

  /// Uses another layer's tensor as this one's weight from now on: a tied output head.
  void tie_weight(const Tensor& shared);
  /// Gives the layer numbers of its own, equal to those that it shared.
  void untie_weight();

  /// Gives up the weight's memory; `again` makes the weight anew, bit for bit. Until then the parameter keeps its name,
  /// shape and type, and reads as NaN. See LinearGroup.
  void release_weight(std::function<Tensor()> again);
  bool weight_is_released() const { return again_ != nullptr; }
  /// Gives the weight up to a stream, which brings it for each use; as a weight of `block`. Until it is restored.
  void stream_weight(const std::shared_ptr<WeightStream>& stream, size_t block, WeightStream::Read read);
  bool weight_is_streamed() const { return stream_ != nullptr; }
  /// Gives the weight up for one in few bits: each product makes the numbers anew, forward and backward, and lets them go.
  /// Nobody trains them. Until it is restored, which gives the plain numbers that the few bits stand for. `bits` has the
  /// weight's shape; it comes to the weight's device, and moves with the layer. Throws ShapeError.
  void quantize_weight(const ops::QuantizedTensor& bits);
  bool weight_is_quantized() const { return bits_ != nullptr; }
  /// Null when it is not quantised.
  const std::shared_ptr<const ops::QuantizedTensor>& quantized_weight() const { return bits_; }
  /// Streamed or quantised: there are numbers only while a product needs them.
  bool weight_is_brought() const { return weight_is_streamed() || weight_is_quantized(); }
  /// The weight for one use now, not to be kept: the stream's when it is streamed, made anew when it is quantised, else
  /// restored. In the parameter's type, or where nothing is lost by it straight in the type of a product.
  Tensor passing_weight(std::optional<at::ScalarType> of_product = std::nullopt);
  /// The type of passing_weight for a quantised one.
  at::ScalarType passing_dtype(std::optional<at::ScalarType> of_product) const;
  /// The weight's values; of a released one a copy for the caller, while the layer stays as it is.
  Tensor weight_value() const { return again_ ? again_() : weight; }
  /// Makes a released weight anew. Everything in this library that reads or changes a weight calls it first; a program
  /// does so before it reads parameters of a model that trained with FastPaths::release_plain.
  void restore_weight();

  void merge();
  void unmerge();
  void to(torch::Device device, torch::Dtype dtype, bool non_blocking = false) override;
  void to(torch::Dtype dtype, bool non_blocking = false) override;
  void to(torch::Device device, bool non_blocking = false) override;
  void pretty_print(std::ostream& stream) const override;

  LinearOptions options;
  Tensor weight, bias;
  AdapterSlot slot;

 private:
  Tensor product_with(const Tensor& x, const Tensor& added);

  std::function<Tensor()> again_;
  std::shared_ptr<const ops::QuantizedTensor> bits_;
  std::shared_ptr<WeightStream> stream_;
  WeightStream::Place place_ = {};
};
TORCH_MODULE(Linear);

/// What a plain weight is now: another stamp later means that somebody changed or moved it.
struct WeightStamp {
  const void* data = nullptr;
  uint32_t version = 0;
  bool operator==(const WeightStamp&) const = default;
};
WeightStamp stamp_of(const Tensor& weight);

/// Makes every released weight of a model anew.
void restore_weights(torch::nn::Module& model);

/// A parameter of a model, and how to read it now: for a released weight a copy is made.
struct ReadableParameter {
  std::string name;
  Tensor parameter;
  std::function<Tensor()> read;
};
/// All of them, in the order of named_parameters().
std::vector<ReadableParameter> readable_parameters(const torch::nn::Module& model);

}  // namespace lora::nn
