#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <functional>

namespace lora::nn {

/// While one is alive on this thread, every layer of this library that computes (Linear, Embedding, RmsNorm) reports
/// its output to `observer`, in the order of computation. For finding out where a value goes wrong; costs nothing
/// otherwise. LibTorch's C++ modules have no hooks of their own.
class ProbeGuard {
 public:
  using Observer = std::function<void(const torch::nn::Module& module, const at::Tensor& output)>;
  explicit ProbeGuard(Observer observer);
  ~ProbeGuard();
  ProbeGuard(const ProbeGuard&) = delete;
  ProbeGuard& operator=(const ProbeGuard&) = delete;

 private:
  Observer observer_;
  ProbeGuard* outer_;
  friend at::Tensor observed(const torch::nn::Module& module, at::Tensor output);
};

/// Whether a probe is alive on this thread: layers then compute one by one.
bool probing();

/// Called by layers on their result: tells the probe, if there is one, and passes the value through.
at::Tensor observed(const torch::nn::Module& module, at::Tensor output);

}  // namespace lora::nn
