#include "lora/nn/activation_store.h"

#include <ATen/ATen.h>

namespace lora::nn {

struct ActivationStore::Kept {
  std::vector<at::Tensor> host;
  std::vector<at::Tensor> arriving;  ///< on the device again; empty: not sent for
  at::Device device = at::kCPU;
  std::weak_ptr<Kept> before;
};

std::shared_ptr<ActivationStore::Kept> ActivationStore::put(const std::vector<at::Tensor>& tensors) {
  const std::lock_guard lock(mutex_);
  const at::NoGradGuard no_grad;
  auto kept = std::make_shared<Kept>();
  kept->device = tensors.front().device();
  kept->before = last_;
  last_ = kept;
  side_.wait_for_compute();
  side_.run([&] {
    for (const at::Tensor& tensor : tensors) {
      const auto options = tensor.options().device(at::kCPU).pinned_memory(!tensor.is_cpu());
      kept->host.push_back(at::empty(tensor.sizes(), options).copy_(tensor.detach(), /*non_blocking=*/true));
      if (side_.stream()) tensor.record_stream(*side_.stream());  // its memory is not free before the copy is done
    }
  });
  return kept;
}

std::vector<at::Tensor> ActivationStore::take(Kept& kept) {
  const std::lock_guard lock(mutex_);
  send_for(kept);
  side_.let_compute_wait();
  auto tensors = std::move(kept.arriving);
  kept.arriving.clear();
  if (const auto before = kept.before.lock()) send_for(*before);
  return tensors;
}

void ActivationStore::send_for(Kept& kept) {
  if (!kept.arriving.empty()) return;
  const at::NoGradGuard no_grad;
  for (const at::Tensor& tensor : kept.host) {
    kept.arriving.push_back(at::empty(tensor.sizes(), tensor.options().device(kept.device).pinned_memory(false)));
    if (side_.stream()) kept.arriving.back().record_stream(*side_.stream());  // nobody else gets it before the copy is done
  }
  side_.wait_for_compute();
  side_.run([&] {
    for (size_t i = 0; i < kept.host.size(); ++i) kept.arriving[i].copy_(kept.host[i], /*non_blocking=*/true);
  });
}

}  // namespace lora::nn
