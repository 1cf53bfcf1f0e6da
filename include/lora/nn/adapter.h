#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace lora::nn {

using at::Tensor;

/// An update of the form scale * x A^T B^T. A (rank, in), B (out, rank).
struct LowRankFactors {
  Tensor a_RI, b_OR;
  double scale;
};

/// What can sit in a slot (a Linear or an Embedding) beside the frozen base weight.
class Adapter : public torch::nn::Module {
 public:
  /// The term added to the base output. In a Linear x is (..., in), the result (..., out); in an Embedding x holds ids
  /// (int64, any shape) and the result is (..., dim).
  virtual Tensor delta(const Tensor& x) = 0;
  /// The factors, when delta(x) is just their product now; nothing for other methods and under dropout.
  virtual std::optional<LowRankFactors> low_rank() const { return std::nullopt; }
  /// The same update as a change of the base weight, in that weight's shape and in fp32 (double for double), for
  /// merging. Throws ShapeError if the method cannot be merged.
  virtual Tensor weight_delta() const = 0;
  /// A scalar added to the loss; undefined when the method has none.
  virtual Tensor regularizer() const { return {}; }
};

/// The adapters of one slot: attached by name, some of them active, possibly folded into the weight.
/// Shared by Linear and Embedding; the owner registers each adapter as a child module under its name.
class AdapterSlot {
 public:
  /// Names in the order of attachment.
  std::vector<std::string> names() const;
  /// Null when there is none of that name.
  std::shared_ptr<Adapter> find(const std::string& name) const;

  /// Adapters that take part in forward, in this order; names that are not attached here are skipped.
  void set_active(const std::vector<std::string>& names);
  const std::vector<std::string>& active() const { return active_; }
  void set_enabled(bool enabled) { enabled_ = enabled; }
  bool enabled() const { return enabled_; }

  /// Adds the active adapters' updates to `weight` in place; forward then uses the weight alone. Twice is an error.
  /// Throws NonFiniteError, leaving the weight as it was, when the sum is not finite.
  void merge(Tensor& weight);
  /// Takes the merged updates out again (in half precision not bit by bit). Nothing when nothing is merged.
  void unmerge(Tensor& weight);
  const std::vector<std::string>& merged() const { return merged_; }

  /// Adapters that forward has to add now: enabled, active, not merged.
  const std::vector<std::shared_ptr<Adapter>>& contributing() const;

  void add(const std::string& name, std::shared_ptr<Adapter> adapter);
  void remove(const std::string& name);

 private:
  void refresh();

  std::vector<std::pair<std::string, std::shared_ptr<Adapter>>> attached_;
  std::vector<std::string> active_, merged_;
  std::vector<std::shared_ptr<Adapter>> contributing_, none_;
  bool enabled_ = true;
};

}  // namespace lora::nn
