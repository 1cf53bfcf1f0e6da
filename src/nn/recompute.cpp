#include "lora/nn/recompute.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "lora/ops/autocast.h"
#include "lora/ops/device.h"

namespace lora::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Body = std::function<variable_list(const variable_list&)>;

/// What the second run must find as the first one did.
struct FirstRun : torch::CustomClassHolder {
  FirstRun(Body body_, const at::Device& device_)
      : body(std::move(body_)),
        device(device_),
        autocast_dtype(compute_dtype(device_.type(), at::kFloat)),
        generator(generator_state(device_)) {}

  /// Inputs of their own that ask for gradients as the given ones did.
  variable_list fresh(at::TensorList given) const {
    variable_list inputs;
    for (size_t i = 0; i < given.size(); ++i) inputs.push_back(given[i].detach().requires_grad_(wants_gradient[i]));
    return inputs;
  }

  /// With gradients on, since layers choose their kernels by that and the second run has them on; its graph is dropped.
  variable_list first(at::TensorList given) const {
    const at::AutoGradMode with_gradients(true);
    variable_list outputs = body(fresh(given));
    for (at::Tensor& output : outputs) output = output.detach();
    return outputs;
  }

  variable_list again(const variable_list& inputs) const {
    const at::Tensor now = generator_state(device);
    set_generator_state(device, generator);
    const AutocastGuard autocast(device.type(), autocast_dtype);
    variable_list outputs = body(inputs);
    set_generator_state(device, now);
    return outputs;
  }

  Body body;
  at::Device device;
  at::ScalarType autocast_dtype;  ///< kFloat: off
  at::Tensor generator;
  std::vector<bool> wants_gradient;        ///< by input
  std::shared_ptr<ActivationStore> store;  ///< null: autograd keeps the inputs
  std::shared_ptr<ActivationStore::Kept> kept;
};

struct Recomputed : torch::autograd::Function<Recomputed> {
  static variable_list forward(AutogradContext* context, at::TensorList inputs, const c10::intrusive_ptr<FirstRun>& run) {
    if (run->store) {
      run->kept = run->store->put(inputs.vec());
    } else {
      context->save_for_backward(inputs.vec());
    }
    context->saved_data["run"] = c10::IValue::make_capsule(run);
    return run->first(inputs);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto run = c10::static_intrusive_pointer_cast<FirstRun>(context->saved_data["run"].toCapsule());
    const auto saved = run->store ? run->store->take(*run->kept) : context->get_saved_variables();
    const at::AutoGradMode with_gradients(true);
    const variable_list inputs = run->fresh(saved);
    const variable_list outputs = run->again(inputs);
    variable_list roots, root_gradients;
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (!outputs[i].requires_grad()) continue;
      roots.push_back(outputs[i]);
      root_gradients.push_back(gradients[i]);
    }
    if (!roots.empty()) torch::autograd::backward(roots, root_gradients);
    variable_list results;
    for (const at::Tensor& input : inputs) results.push_back(input.grad());
    results.emplace_back();
    return results;
  }
};

}  // namespace

std::vector<at::Tensor> recomputed(std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>&)> function,
                                   const std::vector<at::Tensor>& inputs, const std::shared_ptr<ActivationStore>& store) {
  if (!at::GradMode::is_enabled()) return function(inputs);
  auto run = c10::make_intrusive<FirstRun>(std::move(function), inputs.front().device());
  run->store = store;
  variable_list given = inputs;
  for (const at::Tensor& input : given) run->wants_gradient.push_back(input.requires_grad());
  // Autograd calls backward only when an input asks for a gradient; parameters inside may need it all the same.
  const bool any = std::any_of(run->wants_gradient.begin(), run->wants_gradient.end(), [](bool wants) { return wants; });
  if (!any) given.front() = given.front().detach().requires_grad_();
  return Recomputed::apply(at::TensorList(given), run);
}

}  // namespace lora::nn
