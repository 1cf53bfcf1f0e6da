// What the GPU's tests share. On a machine without one every test says that it was skipped.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "catch.h"

#define LORA_SKIP_WITHOUT_GPU()           \
  do {                                    \
    if (!at::hasCUDA()) {                 \
      WARN("skipped: no GPU is present"); \
      return;                             \
    }                                     \
  } while (false)

namespace lora::testing {

inline const at::Device kGpu = at::Device(at::kCUDA, 0);

/// What sums of so rounded numbers may be off, of the largest value.
inline double tolerance_of(at::ScalarType dtype) {
  if (dtype == at::kDouble) return 1e-10;
  return dtype == at::kFloat ? 2e-5 : dtype == at::kHalf ? 4e-3 : 3e-2;
}

inline void check_near(const at::Tensor& found, const at::Tensor& expected, double tolerance) {
  REQUIRE(found.sizes() == expected.sizes());
  const at::Tensor a = found.detach().to(at::kCPU, at::kDouble), b = expected.detach().to(at::kCPU, at::kDouble);
  const double scale = std::max(1e-6, b.abs().max().item<double>());
  CHECK((a - b).abs().max().item<double>() <= tolerance * scale);
}

using Function = std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>&)>;

/// Results of f and gradients of a weighted sum of them.
inline std::vector<at::Tensor> results_and_gradients(const Function& f, const std::vector<at::Tensor>& inputs) {
  std::vector<at::Tensor> leaves;
  for (const at::Tensor& input : inputs) leaves.push_back(input.detach().requires_grad_());
  auto results = f(leaves);
  at::Tensor sum;
  for (size_t i = 0; i < results.size(); ++i) {
    const auto weights = at::sin(at::arange(results[i].numel(), at::kDouble) + static_cast<double>(i))
                             .view(results[i].sizes())
                             .to(results[i].device());
    const at::Tensor term = (results[i].to(at::kDouble) * weights).sum();
    sum = sum.defined() ? sum + term : term;
  }
  const auto gradients = torch::autograd::grad({sum}, leaves);
  results.insert(results.end(), gradients.begin(), gradients.end());
  return results;
}

/// The same numbers at an address that is no multiple of 16 bytes.
inline at::Tensor misaligned(const at::Tensor& x) {
  at::Tensor room = at::empty({x.numel() + 1}, x.options());
  at::Tensor moved = room.slice(0, 1).view(x.sizes());
  moved.copy_(x);
  return moved;
}

/// f on the GPU, in every type, aligned and (unless LibTorch's own kernels insist) not, against `reference` in double on the
/// CPU with the same rounded inputs.
inline void check_on_gpu(const Function& f, const Function& reference, const std::vector<at::Tensor>& inputs,
                         bool takes_misaligned = true) {
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) {
    for (const bool aligned : {true, false}) {
      if (!aligned && !takes_misaligned) continue;
      INFO(c10::toString(dtype) << (aligned ? "" : ", misaligned"));
      std::vector<at::Tensor> exact, moved;
      for (const at::Tensor& input : inputs) {
        const at::Tensor typed = input.to(dtype);
        exact.push_back(typed.to(at::kDouble));
        const at::Tensor there = typed.to(kGpu);
        moved.push_back(aligned ? there : misaligned(there));
      }
      const auto found = results_and_gradients(f, moved), expected = results_and_gradients(reference, exact);
      REQUIRE(found.size() == expected.size());
      for (size_t i = 0; i < found.size(); ++i) {
        INFO("result " << i);
        CHECK(found[i].is_cuda());
        check_near(found[i], expected[i], tolerance_of(dtype));
      }
    }
  }
}

}  // namespace lora::testing
