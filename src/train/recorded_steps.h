// Forward and backward of a micro-batch as one launch on a GPU.
#pragma once

#include <compare>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "lora/nn/causal_lm.h"
#include "lora/ops/batch.h"
#include "ops/gpu.h"

namespace lora::train {

/// What a micro-batch is recorded under.
struct RecordedShape {
  int64_t rows = 0, length = 0, targets = 0;
  auto operator<=>(const RecordedShape&) const = default;
};

/// The shape of a batch with its number of targets rounded up, so that few are distinct: to an eighth of all positions.
RecordedShape recorded_shape(const Batch& batch);

/// The batch with as many targets as its shape says, in new tensors: those added have kIgnoreLabel, and where all positions
/// are targets they stand in order. Every row's first token is one, by its label.
Batch filled_up(const Batch& batch, const RecordedShape& shape);

/// Records micro-batches whose shape has come a few times, checks the record against the usual way once, and runs it from
/// then on. Where that is not possible, or of no use, the usual way goes on; it is said once why.
class RecordedSteps {
 public:
  /// Adds the gradients of factor * (loss sum of the batch) to those of the trained parameters, and returns the loss sum
  /// (on the device); nothing, and nothing done, when the usual way must be gone. `shares`: other micro-batches add to the
  /// same gradients.
  std::optional<at::Tensor> run(nn::CausalLMImpl& model, const Batch& batch, double factor, at::ScalarType amp_dtype,
                                bool shares);

 private:
  struct Record {
    Batch batch;
    at::Tensor factor, loss;
    std::vector<at::Tensor> gradients;  ///< by parameter; undefined: not reached
    std::unique_ptr<ops::RecordedWork> work;
  };

  void forget_when_changed(nn::CausalLMImpl& model, at::ScalarType amp_dtype);
  std::optional<Record> made(nn::CausalLMImpl& model, const Batch& batch, const RecordedShape& shape, double factor,
                             at::ScalarType amp_dtype);
  /// No more records until parameters or switches change.
  std::nullopt_t given_up(const std::string& why);
  void say_once(const std::string& why);

  std::vector<at::Tensor> parameters_;  ///< trained
  std::vector<const void*> seen_;       ///< what the records rest on
  std::map<RecordedShape, Record> records_;
  std::map<RecordedShape, int> times_;  ///< how often a shape came, until it was recorded
  bool given_up_ = false;
  std::set<std::string> said_;
};

}  // namespace lora::train
