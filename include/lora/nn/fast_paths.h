#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace lora::nn {

/// Which optimisations a model uses. Each computes what the plain operations compute, only faster; where one does not
/// apply (another device or type, an adapter with dropout, a trained weight) the plain operations run.
struct FastPaths {
  bool joined = true;           ///< layers with one input run as one product, with their low-rank updates
  bool packed_weights = true;   ///< frozen weights are kept in the layout of the processor's matrix products
  bool fused_norm = true;       ///< residual sum and norm in one kernel
  bool fused_rotary = true;     ///< splitting into heads and rotating in one kernel
  bool fused_swiglu = true;     ///< SwiGLU in one kernel
  bool fused_attention = true;  ///< attention whose backward pass is made of batched products
  bool fused_loss = true;       ///< softmax, loss and gradient of the logits in one kernel
  bool recorded_step = true;    ///< on a GPU: forward and backward of a shape seen before as one launch
  /// A packed weight's plain form is given up until it is asked for (LinearImpl::restore_weight), which saves a third of
  /// the memory. Off for programs, which may look at parameters at any time; on in the lora program.
  bool release_plain = false;

  static FastPaths none() { return {false, false, false, false, false, false, false, false, false}; }
  /// Names as in the run file: "joined", "packed_weights", ...
  static std::vector<std::string> names();
  /// The switch of that name. Throws ConfigError for a name that is none.
  bool& at(std::string_view name);
};

}  // namespace lora::nn
