#include "lora/train/optimizer.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/check.h"
#include "lora/core/pattern.h"
#include "ops/rows.h"

namespace lora::train {
namespace {

using State = std::map<std::string, at::Tensor>;
using Tensors = std::vector<at::Tensor>;

/// PEFT's loraplus_lr_embedding when it is not given.
constexpr double kLoraPlusEmbeddingRate = 1e-6;

double lr_ratio(const std::string& name, const at::Tensor& parameter, const OptimizerOptions& options) {
  if (!options.loraplus_lr_ratio) return 1;
  if (name.find("lora_embedding_") != std::string::npos) return kLoraPlusEmbeddingRate / options.lr;
  const bool is_fast = name.find("lora_B") != std::string::npos || parameter.dim() == 1;
  return is_fast ? *options.loraplus_lr_ratio : 1;
}

bool is_half(const at::Tensor& tensor) { return tensor.scalar_type() == at::kHalf || tensor.scalar_type() == at::kBFloat16; }

/// One piece of memory of zeros for all of `shapes`' parts, each of which begins where wide loads may.
Tensors parts_of_one(const std::vector<std::vector<int64_t>>& shapes, const at::TensorOptions& options) {
  constexpr int64_t kAlignment = 16;  // numbers
  const auto room = [](int64_t count) { return (count + kAlignment - 1) / kAlignment * kAlignment; };
  std::vector<int64_t> counts;
  for (const auto& shape : shapes) counts.push_back(c10::multiply_integers(shape));
  int64_t total = 0;
  for (const int64_t count : counts) total += room(count);
  const at::Tensor all = at::zeros({total}, options);
  Tensors parts;
  int64_t begin = 0;
  for (size_t i = 0; i < shapes.size(); ++i) {
    parts.push_back(all.narrow(0, begin, counts[i]).view(shapes[i]));
    begin += room(counts[i]);
  }
  return parts;
}

/// A parameter with what its optimizer remembers of it.
struct Slot {
  std::string name;
  at::Tensor parameter;
  at::Tensor value;  ///< what is updated: the parameter, or its copy
  State state;
};

/// The half of an optimizer that does not know the update rule: which parameters have a gradient,
/// copies in fp32, names of the state. All that is remembered under one key is one piece of memory
/// (per type and device), however many parameters there are.
class SlotOptimizer : public Optimizer {
 public:
  SlotOptimizer(std::vector<ParameterGroup> groups, bool has_masters) : Optimizer(std::move(groups)), has_masters_(has_masters) {
    for (const auto& group : groups_) {
      auto& slots = slots_.emplace_back();
      for (const auto& [name, parameter] : group.parameters) slots.push_back({name, parameter, parameter, {}});
    }
    add_masters();
  }

  void step(double learning_rate, double gradient_factor) override {
    const at::NoGradGuard no_grad;
    for (size_t i = 0; i < groups_.size(); ++i) {
      std::vector<Slot*> with_gradient, rounded;
      for (auto& slot : slots_[i]) {
        if (slot.parameter.grad().defined()) (is_rounded(slot) ? rounded : with_gradient).push_back(&slot);
      }
      const Numbers numbers{learning_rate * groups_[i].lr_ratio, groups_[i].weight_decay, gradient_factor};
      if (!with_gradient.empty()) update(with_gradient, numbers);
      for (Slot* slot : rounded) update_rounded(*slot, numbers);
      count_versions(with_gradient);
      count_versions(rounded);
    }
  }

  State state() const override {
    State all;
    for (const auto& slots : slots_) {
      for (const auto& slot : slots) {
        for (const auto& [key, tensor] : slot.state) all.emplace(key + "." + slot.name, tensor);
      }
    }
    return all;
  }

  void load_state(const State& given) override {
    const State own = state();
    for (const auto& [name, tensor] : own) require_fits(given, name, tensor);
    for (const auto& entry : given) {
      require<ShapeError>(own.contains(entry.first),
                          "[optimizer] a saved state must belong to these parameters and options; "
                          "found {:?} besides; resume with the settings it was saved with",
                          entry.first);
    }
    const at::NoGradGuard no_grad;
    for (const auto& [name, tensor] : own) tensor.copy_(given.at(name));
  }

 protected:
  /// The numbers of one group's update.
  struct Numbers {
    double learning_rate, weight_decay, gradient_factor;
  };
  /// Updates values and parameters.
  virtual void update(const std::vector<Slot*>& slots, const Numbers& numbers) = 0;

  static void multiply_gradients(const std::vector<Slot*>& slots, double factor) {
    if (factor == 1 || slots.empty()) return;
    Tensors gradients;
    for (const Slot* slot : slots) gradients.push_back(slot->parameter.grad());
    at::_foreach_mul_(gradients, factor);
  }

  static void copy_to_parameters(const std::vector<Slot*>& slots) {
    for (Slot* slot : slots) {
      if (!slot->value.is_same(slot->parameter)) slot->parameter.copy_(slot->value);
    }
  }

  /// Zeros like every value.
  void add_state(const std::string& key) {
    add(key, all_slots(), [](const Slot& slot) { return slot.value.sizes().vec(); });
  }
  /// One fp32 zero for every value.
  void add_number(const std::string& key) {
    add(
        key, all_slots(), [](const Slot&) { return std::vector<int64_t>(); }, at::kFloat);
  }

 private:
  /// Updated in its own half precision, without a master.
  bool is_rounded(const Slot& slot) const { return !has_masters_ && is_half(slot.parameter); }

  /// Fused kernels write into memory without saying so, and what was computed from a parameter is kept by its version.
  static void count_versions(const std::vector<Slot*>& slots) {
    for (const Slot* slot : slots) slot->parameter.unsafeGetTensorImpl()->bump_version();
  }

  /// One at a time, so that the numbers in fp32 that the update is computed in are never those of all parameters.
  void update_rounded(Slot& slot, const Numbers& numbers) {
    multiply_gradients({&slot}, numbers.gradient_factor);
    at::Tensor& gradient = slot.parameter.mutable_grad();
    gradient = gradient.to(slot.parameter.scalar_type());
    slot.value = slot.parameter.detach().to(at::kFloat, /*non_blocking=*/false, /*copy=*/true, at::MemoryFormat::Contiguous);
    update({&slot}, {numbers.learning_rate, numbers.weight_decay, /*gradient_factor=*/1});
    slot.value = slot.parameter;
  }

  /// Copies in the type of the update, for parameters of which it is not, and for strided ones, since the fused kernels walk
  /// memory in order.
  void add_masters() {
    const at::NoGradGuard no_grad;
    std::vector<Slot*> slots = all_slots();
    std::erase_if(
        slots, [&](const Slot* slot) { return is_half(slot->parameter) ? is_rounded(*slot) : slot->parameter.is_contiguous(); });
    add("master", slots, [](const Slot& slot) { return slot.parameter.sizes().vec(); });
    for (Slot* slot : slots) {
      slot->value = slot->state.at("master");
      slot->value.copy_(slot->parameter);
    }
  }

  std::vector<Slot*> all_slots() {
    std::vector<Slot*> all;
    for (auto& slots : slots_) {
      for (auto& slot : slots) all.push_back(&slot);
    }
    return all;
  }

  /// `type`: where it is not the one in which the parameter is updated.
  static void add(const std::string& key, const std::vector<Slot*>& slots, const auto& shape_of,
                  std::optional<at::ScalarType> type = {}) {
    std::map<std::pair<std::string, at::ScalarType>, std::vector<Slot*>> alike;
    for (Slot* slot : slots) {
      const auto& parameter = slot->parameter;
      alike[{parameter.device().str(), type.value_or(ops::rows::wide_type(parameter.scalar_type()))}].push_back(slot);
    }
    for (const auto& [kind, same] : alike) {
      std::vector<std::vector<int64_t>> shapes;
      for (const Slot* slot : same) shapes.push_back(shape_of(*slot));
      const Tensors parts = parts_of_one(shapes, same.front()->parameter.options().dtype(kind.second).requires_grad(false));
      for (size_t i = 0; i < same.size(); ++i) same[i]->state[key] = parts[i];
    }
  }

  static void require_fits(const State& given, const std::string& name, const at::Tensor& own) {
    const auto found = given.find(name);
    require<ShapeError>(found != given.end(),
                        "[optimizer] a saved state must belong to these parameters and options; it "
                        "has no {:?}; resume with the settings it was saved with",
                        name);
    const auto& tensor = found->second;
    require<ShapeError>(tensor.sizes() == own.sizes() && tensor.scalar_type() == own.scalar_type(),
                        "[optimizer] the saved {:?} must be [{}] {}; found [{}] {}; resume with "
                        "the settings it was "
                        "saved with",
                        name, fmt::join(own.sizes(), ", "), c10::toString(own.scalar_type()), fmt::join(tensor.sizes(), ", "),
                        c10::toString(tensor.scalar_type()));
  }

  std::vector<std::vector<Slot>> slots_;  ///< by group
  const bool has_masters_;
};

Tensors values_of(const std::vector<Slot*>& slots) {
  Tensors values;
  for (const Slot* slot : slots) values.push_back(slot->value);
  return values;
}

Tensors gradients_of(const std::vector<Slot*>& slots) {
  Tensors gradients;
  for (const Slot* slot : slots) {
    gradients.push_back(slot->parameter.grad().to(slot->value.scalar_type()).contiguous());
  }
  return gradients;
}

Tensors states_of(const std::vector<Slot*>& slots, const std::string& key) {
  Tensors states;
  for (const Slot* slot : slots) states.push_back(slot->state.at(key));
  return states;
}

class AdamW : public SlotOptimizer {
 public:
  AdamW(std::vector<ParameterGroup> groups, const OptimizerOptions& options)
      : SlotOptimizer(std::move(groups), options.master_weights), options_(options) {
    add_state("exp_avg");
    add_state("exp_avg_sq");
    add_number("step");
  }

 private:
  void update(const std::vector<Slot*>& slots, const Numbers& numbers) override {
    at::_foreach_add_(states_of(slots, "step"), 1);
    std::vector<Slot*> on_gpu, others;
    for (Slot* slot : slots) {
      if (has_kernel(*slot)) {
        update_with_kernel(*slot, numbers);
      } else {
        const bool joint = ops::rows::has_joint_adamw(slot->parameter, slot->parameter.grad());
        (joint ? on_gpu : others).push_back(slot);
      }
    }
    multiply_gradients(on_gpu, numbers.gradient_factor);
    multiply_gradients(others, numbers.gradient_factor);
    update_on_gpu(on_gpu, numbers);
    if (!others.empty()) update_with_stock(others, numbers);
  }

  /// A bf16 parameter on the CPU: gradient, master, moments and parameter in one pass.
  static bool has_kernel(const Slot& slot) {
    const auto is_plain_bf16 = [](const at::Tensor& tensor) {
      return tensor.device().is_cpu() && tensor.scalar_type() == at::kBFloat16 && tensor.is_contiguous();
    };
    return is_plain_bf16(slot.parameter) && is_plain_bf16(slot.parameter.grad());
  }

  /// The update as the kernels want it, with bias corrections yet to come.
  ops::rows::AdamWStep rule(const Numbers& numbers) const {
    return {.learning_rate = numbers.learning_rate,
            .beta1 = options_.beta1,
            .beta2 = options_.beta2,
            .eps = options_.eps,
            .weight_decay = numbers.weight_decay};
  }

  void update_with_kernel(Slot& slot, const Numbers& numbers) const {
    auto step = rule(numbers);
    step.gradient_factor = numbers.gradient_factor;
    if (options_.bias_correction) {
      const double steps = slot.state.at("step").item<double>();
      step.correction1 = 1 - std::pow(options_.beta1, steps);
      step.correction2 = 1 - std::pow(options_.beta2, steps);
    }
    at::Tensor parameter = slot.parameter.detach();
    ops::rows::adamw(step, slot.parameter.grad(), slot.value, slot.state.at("exp_avg"), slot.state.at("exp_avg_sq"), parameter);
  }

  /// Parameters of one type at a time.
  void update_on_gpu(const std::vector<Slot*>& slots, const Numbers& numbers) const {
    for (const auto dtype : {at::kBFloat16, at::kHalf}) {
      std::vector<ops::rows::AdamWTensors> of_type;
      for (const Slot* slot : slots) {
        if (slot->parameter.scalar_type() != dtype) continue;
        of_type.push_back({slot->parameter.grad(), slot->value, slot->state.at("exp_avg"), slot->state.at("exp_avg_sq"),
                           slot->parameter.detach(), slot->state.at("step")});
      }
      if (!of_type.empty()) ops::rows::joint_adamw(rule(numbers), options_.bias_correction, of_type);
    }
  }

  void update_with_stock(const std::vector<Slot*>& slots, const Numbers& numbers) const {
    const Tensors steps = states_of(slots, "step");
    at::_fused_adamw_(values_of(slots), gradients_of(slots), states_of(slots, "exp_avg"), states_of(slots, "exp_avg_sq"), {},
                      correction_steps(steps), numbers.learning_rate, options_.beta1, options_.beta2, numbers.weight_decay,
                      options_.eps, /*amsgrad=*/false, /*maximize=*/false);
    copy_to_parameters(slots);
  }

  /// The correction divides by 1 - beta^step, which is 1 after infinitely many steps.
  Tensors correction_steps(const Tensors& steps) const {
    if (options_.bias_correction) return steps;
    return Tensors(steps.size(), at::full_like(steps.front(), std::numeric_limits<double>::infinity()));
  }

  OptimizerOptions options_;
};

class Sgd : public SlotOptimizer {
 public:
  Sgd(std::vector<ParameterGroup> groups, const OptimizerOptions& options)
      : SlotOptimizer(std::move(groups), options.master_weights), momentum_(options.momentum) {
    if (momentum_ == 0) return;
    add_state("momentum");
  }

 private:
  void update(const std::vector<Slot*>& slots, const Numbers& numbers) override {
    multiply_gradients(slots, numbers.gradient_factor);
    const Tensors values = values_of(slots);
    Tensors directions = gradients_of(slots);
    if (numbers.weight_decay != 0) {
      directions = at::_foreach_add(directions, values, numbers.weight_decay);
    }
    if (momentum_ != 0) {
      const Tensors momenta = states_of(slots, "momentum");
      at::_foreach_mul_(momenta, momentum_);
      at::_foreach_add_(momenta, directions);
      directions = momenta;
    }
    at::_foreach_add_(values, directions, -numbers.learning_rate);
    copy_to_parameters(slots);
  }

  double momentum_;
};

void require_valid(const OptimizerOptions& options) {
  const auto is_beta = [](double beta) { return beta >= 0 && beta < 1; };
  require<ConfigError>(is_beta(options.beta1) && is_beta(options.beta2) && is_beta(options.momentum),
                       "[optimizer] betas and momentum must be in [0, 1); found {}, {} and {}; use for example 0.9, "
                       "0.999 and 0",
                       options.beta1, options.beta2, options.momentum);
  require<ConfigError>(options.eps >= 0 && options.weight_decay >= 0,
                       "[optimizer] eps and weight_decay must not be negative; found {} and {}; use "
                       "for example 1e-8 and 0",
                       options.eps, options.weight_decay);
}

}  // namespace

std::vector<ParameterGroup> parameter_groups(const NamedParameters& parameters, const OptimizerOptions& options) {
  require<ConfigError>(!options.loraplus_lr_ratio || options.lr > 0,
                       "[optimizer] lr must be positive with loraplus_lr_ratio; found {}; use for "
                       "example 2e-4",
                       options.lr);
  std::vector<NamePattern> no_decay;
  for (const auto& expression : options.no_decay) no_decay.emplace_back(expression, "no_decay");

  std::vector<ParameterGroup> groups;
  for (const auto& [name, parameter] : parameters) {
    const bool decays = std::ranges::none_of(no_decay, [&](const NamePattern& pattern) { return pattern.matches_part(name); });
    const double weight_decay = decays ? options.weight_decay : 0;
    const double ratio = lr_ratio(name, parameter, options);
    auto group = std::ranges::find_if(
        groups, [&](const ParameterGroup& known) { return known.lr_ratio == ratio && known.weight_decay == weight_decay; });
    if (group == groups.end()) group = groups.insert(groups.end(), {{}, ratio, weight_decay});
    group->parameters.emplace_back(name, parameter);
  }
  return groups;
}

void Optimizer::zero_grad() {
  for (auto& group : groups_) {
    for (auto& entry : group.parameters) entry.second.mutable_grad() = at::Tensor();
  }
}

std::vector<at::Tensor> Optimizer::gradients(bool widen) {
  std::vector<at::Tensor> found;
  for (auto& group : groups_) {
    for (auto& entry : group.parameters) {
      at::Tensor& gradient = entry.second.mutable_grad();
      if (!gradient.defined()) continue;
      if (widen && is_half(gradient)) gradient = gradient.to(at::kFloat);
      found.push_back(gradient);
    }
  }
  return found;
}

NamedParameters Optimizer::parameters() const {
  NamedParameters all;
  for (const auto& group : groups_) {
    all.insert(all.end(), group.parameters.begin(), group.parameters.end());
  }
  return all;
}

std::unique_ptr<Optimizer> make_optimizer(std::vector<ParameterGroup> groups, const OptimizerOptions& options) {
  require_valid(options);
  require<ConfigError>(std::ranges::any_of(groups, [](const auto& group) { return !group.parameters.empty(); }),
                       "[optimizer] something must be trainable; found no parameter; check what is "
                       "frozen");
  if (options.type == "adamw") return std::make_unique<AdamW>(std::move(groups), options);
  if (options.type == "sgd") return std::make_unique<Sgd>(std::move(groups), options);
  fail<ConfigError>("[optimizer] type must be adamw or sgd; found {:?}; use adamw", options.type);
}

}  // namespace lora::train
