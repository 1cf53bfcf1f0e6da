#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace lora::train {

/// Type and numbers of an optimizer.
struct OptimizerOptions {
  std::string type = "adamw";  ///< adamw | sgd
  double lr = 2e-4;
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0, momentum = 0;
  /// Regular expressions searched in parameter names; a match gets no weight decay.
  std::vector<std::string> no_decay = {"bias$", "norm"};
  /// False: MindSpore's AdamWeightDecay, whose moments are used as they are.
  bool bias_correction = true;
  /// False: parameters in half precision have no copy in fp32 beside them. Each update is computed in fp32 from a gradient of the
  /// parameter's type and rounded to that type, as where models train in pure fp16.
  bool master_weights = true;
  /// LoRA+ (Hayou et al. 2024): B factors and 1-D tensors learn this much faster.
  std::optional<double> loraplus_lr_ratio = {};
};

using NamedParameters = std::vector<std::pair<std::string, at::Tensor>>;

/// Parameters that share their settings.
struct ParameterGroup {
  NamedParameters parameters;
  double lr_ratio = 1;  ///< times the step's learning rate
  double weight_decay = 0;
};

/// The groups that the options ask for, parameters in their order. With LoRA+ names with "lora_B"
/// and 1-D tensors learn at lr * ratio, lora_embedding_A and _B at 1e-6 (PEFT's default for them),
/// the rest at lr; all of them follow the schedule. Weight decay goes by no_decay there, too (PEFT
/// decays every A factor). Source: PEFT 0.21 optimizers/loraplus.py.
std::vector<ParameterGroup> parameter_groups(const NamedParameters& parameters, const OptimizerOptions& options);

/// Updates parameters from their gradients; parameters without a gradient are left alone. What it
/// computes in is fp32 (double for double): a parameter in half precision follows a copy in fp32,
/// made when the optimizer is (unless the options have no master_weights). State is named after the
/// parameters, so that it can be saved and compared.
class Optimizer {
 public:
  virtual ~Optimizer() = default;
  /// One update at this learning rate, from the gradients times `gradient_factor` (how clipping reaches an update that
  /// reads each gradient once; gradients may be changed by it).
  virtual void step(double learning_rate, double gradient_factor = 1) = 0;
  void zero_grad();
  /// The gradients that step() will use, changed in place by whoever scales or clips them. With
  /// `widen` those of parameters in half precision are turned into fp32 first, as unscaling needs.
  std::vector<at::Tensor> gradients(bool widen = true);
  /// Everything that a resumed run needs: "exp_avg.<parameter>", "step.<parameter>" (its updates so
  /// far), ... The tensors are the optimizer's own.
  virtual std::map<std::string, at::Tensor> state() const = 0;
  /// Throws ShapeError, with nothing changed, when names, shapes or types are not those of state().
  virtual void load_state(const std::map<std::string, at::Tensor>& state) = 0;
  const std::vector<ParameterGroup>& groups() const { return groups_; }
  /// The parameters of all groups.
  NamedParameters parameters() const;

 protected:
  explicit Optimizer(std::vector<ParameterGroup> groups) : groups_(std::move(groups)) {}
  std::vector<ParameterGroup> groups_;
};

/// AdamW (Loshchilov and Hutter 2019, as torch.optim.AdamW) or SGD with momentum and L2 decay (as
/// torch.optim.SGD). Throws ConfigError for other types and numbers out of range, and when there is
/// no parameter.
std::unique_ptr<Optimizer> make_optimizer(std::vector<ParameterGroup> groups, const OptimizerOptions& options);

}  // namespace lora::train
