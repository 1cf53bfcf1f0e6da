#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "lora/ops/ops.h"
#include "ops/apply.h"
#include "ops/rows.h"

// Legend: N rows, F feed-forward.
namespace lora::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct SwiGluJoined : torch::autograd::Function<SwiGluJoined> {
  static Tensor forward(AutogradContext* context, const Tensor& gate_up) {
    const Tensor gate_up_N2F = gate_up.reshape({-1, gate_up.size(-1)}).contiguous();
    Tensor h_NF = at::empty({gate_up_N2F.size(0), gate_up_N2F.size(1) / 2}, gate_up.options());
    rows::swiglu(gate_up_N2F, h_NF);
    context->save_for_backward({gate_up});
    auto shape = gate_up.sizes().vec();
    shape.back() /= 2;
    return h_NF.view(shape);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const Tensor gate_up = context->get_saved_variables()[0];
    const Tensor gate_up_N2F = gate_up.reshape({-1, gate_up.size(-1)}).contiguous();
    const Tensor dh_NF = gradients[0].reshape({gate_up_N2F.size(0), -1}).to(gate_up.scalar_type()).contiguous();
    Tensor dgate_up_N2F = at::empty_like(gate_up_N2F);
    rows::swiglu_backward(dh_NF, gate_up_N2F, dgate_up_N2F);
    return {dgate_up_N2F.view(gate_up.sizes())};
  }
};

}  // namespace

Tensor swiglu_joined(const Tensor& gate_up, bool fused) {
  if (rows::applies(fused, gate_up, "fused_swiglu")) return applied<SwiGluJoined>(gate_up);
  const auto halves = gate_up.chunk(2, -1);
  return swiglu(halves[0], halves[1]);
}

}  // namespace lora::ops
