#include "lora/ops/frozen_linear.h"

#include <ATen/ATen.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "lora/ops/autocast.h"
#include "ops/apply.h"
#include "ops/rows.h"

// Legend: N rows (tokens), I inputs, O outputs of all layers, R rank, T ranks of all updates together.
namespace lora::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Where the parts of one update stand among the outputs and among the stacked ranks.
struct Place {
  int64_t output, outputs, rank, ranks;
};

/// What forward and backward share beside the tensors that autograd keeps.
struct Plan : torch::CustomClassHolder {
  Plan(const FrozenWeights& weights_, at::ScalarType dtype_, const std::vector<LowRankUpdate>& updates)
      : weights(weights_), dtype(dtype_) {
    std::vector<int64_t> begins;
    for (const int64_t count : weights.outputs) {
      begins.push_back(outputs);
      outputs += count;
    }
    for (const auto& update : updates) {
      places.push_back({begins.at(update.layer), weights.outputs.at(update.layer), ranks, update.a_RI.size(0)});
      scales.push_back(update.scale);
      ranks += update.a_RI.size(0);
    }
    uses_packed = weights.packed != nullptr && weights.packed->dtype() == dtype;
  }

  Tensor times(const Tensor& x_NI) const {
    if (uses_packed) return weights.packed->times(x_NI);
    const std::vector<Tensor> plain = weights_now();
    if (weights.packs_brought) return PackedWeight::times_once(plain, x_NI);
    const bool few_rows = reads_as_they_are(plain, x_NI);
    if (plain.size() == 1 && !few_rows) return x_NI.mm(plain[0].to(dtype).t());
    Tensor y_NO = at::empty({x_NI.size(0), outputs}, x_NI.options());
    int64_t begin = 0;
    for (const Tensor& weight : plain) {
      if (few_rows) {
        rows::few_rows_product(x_NI, weight, y_NO, begin);
      } else {
        Tensor part = y_NO.narrow(1, begin, weight.size(0));
        at::mm_out(part, x_NI, weight.to(dtype).t());
      }
      begin += weight.size(0);
    }
    return y_NO;
  }

  std::vector<Tensor> weights_now() const { return weights.bring ? weights.bring() : weights.plain; }

  bool reads_as_they_are(const std::vector<Tensor>& plain, const Tensor& x_NI) const {
    return rows::are_few_rows(x_NI) && std::all_of(plain.begin(), plain.end(), [&](const Tensor& weight) {
             return weight.scalar_type() == dtype && weight.is_contiguous();
           });
  }

  Tensor times_transposed(const Tensor& dy_NO) const {
    if (uses_packed) return weights.packed->times_transposed(dy_NO);
    const std::vector<Tensor> plain = weights_now();
    if (weights.packs_brought) return PackedWeight::times_transposed_once(plain, dy_NO);
    Tensor dx_NI;
    int64_t begin = 0;
    for (const Tensor& weight : plain) {
      const Tensor part = dy_NO.narrow(1, begin, weight.size(0));
      if (dx_NI.defined()) {
        dx_NI.addmm_(part, weight.to(dtype));
      } else {
        dx_NI = part.mm(weight.to(dtype));
      }
      begin += weight.size(0);
    }
    return dx_NI;
  }

  void add_biases(Tensor& y_NO) const {
    if (weights.biases.empty()) return;
    std::vector<Tensor> biases;
    for (const Tensor& bias : weights.biases) biases.push_back(bias.to(dtype));
    y_NO.add_(at::cat(biases));
  }

  FrozenWeights weights;
  at::ScalarType dtype;
  std::vector<Place> places;
  std::vector<double> scales;
  int64_t outputs = 0, ranks = 0;
  bool uses_packed = false;
};

/// The A factors below each other, (T, I).
Tensor stacked(const variable_list& a_factors, at::ScalarType dtype) {
  if (a_factors.size() == 1) return a_factors.front().to(dtype);
  return at::cat(a_factors).to(dtype);
}

struct FrozenLinear : torch::autograd::Function<FrozenLinear> {
  static Tensor forward(AutogradContext* context, const Tensor& x, at::TensorList a_factors, at::TensorList b_factors,
                        const c10::intrusive_ptr<Plan>& plan) {
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const Tensor x_NI = x.reshape({-1, x.size(-1)}).to(plan->dtype);
    Tensor y_NO = plan->times(x_NI);
    plan->add_biases(y_NO);

    variable_list kept;
    if (!a_factors.empty()) {
      const Tensor a_TI = stacked(a_factors.vec(), plan->dtype);
      const Tensor low_NT = x_NI.mm(a_TI.t());
      kept = {x_NI, low_NT, a_TI};
      for (size_t i = 0; i < b_factors.size(); ++i) {
        const Place& place = plan->places[i];
        // Scaling the factor, which is small, scales the product.
        const Tensor b_OR = (b_factors[i] * plan->scales[i]).to(plan->dtype);
        y_NO.narrow(1, place.output, place.outputs).addmm_(low_NT.narrow(1, place.rank, place.ranks), b_OR.t());
        kept.push_back(b_OR);
      }
    }
    context->save_for_backward(kept);
    context->saved_data["plan"] = c10::IValue::make_capsule(plan);
    context->saved_data["shape"] = x.sizes().vec();
    context->saved_data["x_type"] = static_cast<int64_t>(x.scalar_type());
    context->saved_data["factor_type"] = static_cast<int64_t>(a_factors.empty() ? plan->dtype : a_factors.front().scalar_type());
    auto shape = x.sizes().vec();
    shape.back() = plan->outputs;
    return y_NO.view(shape);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const auto plan = c10::static_intrusive_pointer_cast<Plan>(context->saved_data["plan"].toCapsule());
    const auto kept = context->get_saved_variables();
    const Tensor dy_NO = gradients[0].reshape({-1, plan->outputs}).to(plan->dtype).contiguous();
    const size_t count = plan->places.size();

    Tensor dlow_NT;
    if (count > 0) {
      dlow_NT = at::empty({dy_NO.size(0), plan->ranks}, dy_NO.options());
      for (size_t i = 0; i < count; ++i) {
        const Place& place = plan->places[i];
        Tensor part = dlow_NT.narrow(1, place.rank, place.ranks);
        at::mm_out(part, dy_NO.narrow(1, place.output, place.outputs), kept[3 + i]);
      }
    }
    variable_list results(2 + 2 * count);
    if (context->needs_input_grad(0)) {
      Tensor dx_NI = plan->times_transposed(dy_NO);
      if (count > 0) dx_NI.addmm_(dlow_NT, kept[2]);
      results[0] = dx_NI.view(context->saved_data["shape"].toIntVector())
                       .to(static_cast<at::ScalarType>(context->saved_data["x_type"].toInt()));
    }
    if (count == 0) return results;
    const auto factor_type = static_cast<at::ScalarType>(context->saved_data["factor_type"].toInt());
    const Tensor &x_NI = kept[0], &low_NT = kept[1];
    const Tensor da_TI = dlow_NT.t().mm(x_NI).to(factor_type);
    for (size_t i = 0; i < count; ++i) {
      const Place& place = plan->places[i];
      if (context->needs_input_grad(1 + i)) results[1 + i] = da_TI.narrow(0, place.rank, place.ranks);
      if (context->needs_input_grad(1 + count + i)) {
        const Tensor dy_part = dy_NO.narrow(1, place.output, place.outputs);
        results[1 + count + i] = dy_part.t().mm(low_NT.narrow(1, place.rank, place.ranks)).to(factor_type).mul_(plan->scales[i]);
      }
    }
    return results;
  }
};

}  // namespace

Tensor frozen_linear(const Tensor& x, const FrozenWeights& weights, const std::vector<LowRankUpdate>& updates) {
  const auto dtype = compute_dtype(x.device().type(), x.scalar_type());
  variable_list a_factors, b_factors;
  for (const auto& update : updates) {
    a_factors.push_back(update.a_RI);
    b_factors.push_back(update.b_OR);
  }
  return applied<FrozenLinear>(x, at::TensorList(a_factors), at::TensorList(b_factors),
                               c10::make_intrusive<Plan>(weights, dtype, updates));
}

}  // namespace lora::ops
