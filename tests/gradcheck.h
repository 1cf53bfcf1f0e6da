// Compares backward passes with central finite differences in double.
#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/types.h>

#include <functional>
#include <vector>

#include "catch.h"

/// `function` maps the inputs to one tensor. Every input that requires a gradient is checked in every element.
inline void check_gradients(const std::function<at::Tensor(const std::vector<at::Tensor>&)>& function,
                            std::vector<at::Tensor> inputs, double tolerance = 1e-7) {
  const double delta = 1e-5;
  const at::Tensor output = function(inputs);
  const at::Tensor direction = at::randn_like(output);
  const auto value = [&] {
    const torch::NoGradGuard no_grad;
    return (function(inputs) * direction).sum().item<double>();
  };
  std::vector<at::Tensor> wanted;
  for (const auto& input : inputs) {
    if (input.requires_grad()) wanted.push_back(input);
  }
  const auto gradients = torch::autograd::grad({output}, wanted, {direction});
  for (size_t k = 0; k < wanted.size(); ++k) {
    REQUIRE(wanted[k].is_contiguous());
    double* elements = wanted[k].data_ptr<double>();
    const at::Tensor gradient = gradients[k].contiguous();
    for (int64_t i = 0; i < wanted[k].numel(); ++i) {
      const double kept = elements[i];
      elements[i] = kept + delta;
      const double above = value();
      elements[i] = kept - delta;
      const double below = value();
      elements[i] = kept;
      const double expected = (above - below) / (2 * delta);
      const double found = gradient.data_ptr<double>()[i];
      INFO("input " << k << " element " << i << ": finite difference " << expected << ", backward " << found);
      REQUIRE(std::abs(found - expected) <= tolerance * std::max(1.0, std::abs(expected)));
    }
  }
}

inline at::Tensor random_double(at::IntArrayRef shape, bool gradient = true) {
  return at::randn(shape, at::kDouble).set_requires_grad(gradient);
}
