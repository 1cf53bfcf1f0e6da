#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lora/nn/attachments.h"

namespace lora::nn {

using at::Tensor;

class LinearImpl;

/// An update of the form scale * x A^T B^T. A (rank, in), B (out, rank).
struct LowRankFactors {
  Tensor a_RI, b_OR;
  double scale;
};

/// What can sit in a slot (a Linear or an Embedding) beside the frozen base weight. The output of a Linear becomes
///   output_scale * (W (input_scale * x) + delta(x)) + bias;
/// most methods have a delta alone.
class Adapter : public torch::nn::Module {
 public:
  /// The term added to the base output. In a Linear x is (..., in), the result (..., out); in an Embedding x holds ids
  /// (int64, any shape) and the result is (..., dim).
  virtual Tensor delta(const Tensor& x) = 0;
  /// False for methods without a delta.
  virtual bool adds() const { return true; }
  /// The factors, when delta(x) is just their product now; nothing for other methods and under dropout.
  virtual std::optional<LowRankFactors> low_rank() const { return std::nullopt; }
  /// The delta as a change of the base weight, in that weight's shape and in fp32 (double for double), for merging.
  /// Throws ConfigError if the method cannot be merged.
  virtual Tensor weight_delta() const = 0;
  /// A scalar added to the loss; undefined when the method has none.
  virtual Tensor regularizer() const { return {}; }

  /// Whether it has scales, and so depends on what is applied before and after it.
  virtual bool scales() const { return false; }
  /// (in), or undefined: 1.
  virtual Tensor input_scale() const { return {}; }
  /// Rows (R, in) whose products with the base weight output_scale needs; undefined: none. No gradient reaches them.
  virtual Tensor rows_for_scale() const { return {}; }
  /// (out), or undefined: 1. rows_RO: the products of rows_for_scale().
  virtual Tensor output_scale(const Tensor& /*rows_RO*/, LinearImpl& /*layer*/) { return {}; }
  /// Whether the bias is scaled with the rest.
  virtual bool scales_bias() const { return false; }

  /// The output of a Linear with this adapter, from the one without: y, for the input x.
  virtual Tensor apply(const Tensor& x, const Tensor& y, LinearImpl& layer);
  /// The same for rows of an Embedding's `table`.
  virtual Tensor apply_to_rows(const Tensor& ids, const Tensor& y, const Tensor& table);
  /// The weight (fp32, or double) with this adapter folded in; `base` is what it was before any adapter was.
  virtual Tensor merged(const Tensor& weight, const Tensor& base) const;
  /// The same for a Linear's bias.
  virtual Tensor merged_bias(const Tensor& bias) const { return bias; }
};

/// output_scale * (y - bias) + bias, or output_scale * y where the bias is scaled as well.
Tensor scaled_output(Adapter& adapter, const Tensor& y, LinearImpl& layer);

/// The adapters of one weight, possibly folded into it. Shared by Linear and Embedding; the owner registers each adapter
/// as a child module under its name.
class AdapterSlot : public Attachments<Adapter> {
 public:
  /// Folds the active adapters into `weight` (and `bias`, which may be undefined) in place; forward then uses them alone.
  /// Twice is an error. Throws NonFiniteError, leaving both as they were, when a result is not finite.
  void merge(Tensor& weight, Tensor& bias);
  /// Takes the merged updates out again (of methods that only add not bit by bit in half precision). Nothing when nothing
  /// is merged.
  void unmerge(Tensor& weight, Tensor& bias);
  const std::vector<std::string>& merged() const { return merged_; }

  /// Adapters that forward has to use now: enabled, active, not merged.
  const std::vector<std::shared_ptr<Adapter>>& contributing() const {
    return merged_.empty() ? Attachments<Adapter>::contributing() : none_;
  }

 private:
  std::vector<std::string> merged_;
  Tensor former_weight_, former_bias_;  ///< of a merge that is no sum
  std::vector<std::shared_ptr<Adapter>> none_;
};

/// x times the slot's input scales: what its base weight multiplies.
Tensor scaled_input(const AdapterSlot& slot, const Tensor& x);

}  // namespace lora::nn
