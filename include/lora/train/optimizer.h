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

struct OptimizerOptions {
  std::string type = "adamw";  ///< adamw | sgd
  double lr = 2e-4;
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0, momentum = 0;
  std::vector<std::string> no_decay = {"bias$", "norm"};  ///< searched in parameter names
  bool bias_correction = true;
  /// LoRA+ (Hayou et al. 2024): B factors and 1-D adapter tensors learn this much faster.
  std::optional<double> loraplus_lr_ratio;
};

/// Parameters that share their settings.
struct ParameterGroup {
  std::vector<std::pair<std::string, at::Tensor>> parameters;
  double lr_ratio = 1;      ///< times the step's learning rate
  double weight_decay = 0;
};

/// The groups that the options ask for: decay or not, LoRA+ or not. Source for LoRA+: PEFT optimizers/loraplus.py.
std::vector<ParameterGroup> parameter_groups(const std::vector<std::pair<std::string, at::Tensor>>& parameters,
                                             const OptimizerOptions& options);

/// Updates parameters from their gradients; parameters without a gradient are left alone. State is fp32 (double for
/// double) and named after the parameters, so that it can be saved and compared.
class Optimizer {
 public:
  virtual ~Optimizer() = default;
  /// One update at this learning rate.
  virtual void step(double learning_rate) = 0;
  void zero_grad();
  /// Everything that a resumed run needs: "exp_avg.<parameter>", ..., "step" (updates done).
  virtual std::map<std::string, at::Tensor> state() const = 0;
  /// Throws ShapeError when the names or shapes are not those of state().
  virtual void load_state(const std::map<std::string, at::Tensor>& state) = 0;
  const std::vector<ParameterGroup>& groups() const { return groups_; }

 protected:
  explicit Optimizer(std::vector<ParameterGroup> groups) : groups_(std::move(groups)) {}
  std::vector<ParameterGroup> groups_;
};

/// AdamW (Loshchilov and Hutter 2019, as torch.optim.AdamW) or SGD. Throws ConfigError for other types.
std::unique_ptr<Optimizer> make_optimizer(std::vector<ParameterGroup> groups, const OptimizerOptions& options);

}  // namespace lora::train
