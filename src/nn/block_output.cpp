#include "lora/nn/block_output.h"

namespace lora::nn {

Tensor BlockOutputImpl::forward(const Tensor& out_BSD, const Tensor& x_BSD) {
  Tensor out = out_BSD;
  for (const auto& adapter : slot.contributing()) out = adapter->apply(out, x_BSD).to(out_BSD.scalar_type());
  return out;
}

void BlockOutputImpl::attach(const std::string& name, const std::shared_ptr<BlockAdapter>& adapter) {
  slot.add(name, adapter);
  register_module(name, adapter);
}

void BlockOutputImpl::detach(const std::string& name) {
  if (!slot.find(name)) return;
  slot.remove(name);
  unregister_module(name);
}

}  // namespace lora::nn
