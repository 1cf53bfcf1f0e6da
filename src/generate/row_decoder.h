// What decoding one prompt is to those that decode many side by side.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "lora/generate/generate.h"

namespace lora::generate {

/// How a sequence goes on.
struct Continuation {
  int64_t parent = 0;  ///< which of the row's sequences it continues
  int64_t id = 0;      ///< with which token
};

/// Decodes one prompt, in one sequence or several. N sequences, V vocabulary.
class RowDecoder {
 public:
  virtual ~RowDecoder() = default;
  /// Logits (N, V) in fp32 on the CPU after each of its sequences; at first after the prompt alone, (1, V).
  virtual void take(const at::Tensor& logits_NV) = 0;
  /// Its sequences from now on. Empty: it has ended.
  virtual std::vector<Continuation> continuations() const = 0;
  virtual Generation result() const = 0;
};

}  // namespace lora::generate
