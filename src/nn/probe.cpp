#include "lora/nn/probe.h"

namespace lora::nn {
namespace {

thread_local ProbeGuard* current_probe = nullptr;

}  // namespace

ProbeGuard::ProbeGuard(Observer observer) : observer_(std::move(observer)), outer_(current_probe) { current_probe = this; }

ProbeGuard::~ProbeGuard() { current_probe = outer_; }

bool probing() { return current_probe != nullptr; }

at::Tensor observed(const torch::nn::Module& module, at::Tensor output) {
  if (current_probe != nullptr) current_probe->observer_(module, output);
  return output;
}

}  // namespace lora::nn
