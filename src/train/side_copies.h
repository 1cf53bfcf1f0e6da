// Copies to a GPU beside its work.
#pragma once

#include <c10/core/Event.h>
#include <c10/core/Stream.h>

#include <vector>

#include "lora/data/loader.h"

namespace lora::train {

/// Moves the batches of coming steps to a GPU on a stream of their own, while it computes.
class SideCopies {
 public:
  explicit SideCopies(const at::Device& device);

  /// A step's batches on their way; the originals are kept, since the copies read them.
  struct Moving {
    data::StepData step;
    std::vector<Batch> originals;
    c10::Event arrived;
  };
  /// Starts the copies and returns at once, from pinned memory as it is, else after pinning it.
  Moving start(data::StepData step) const;
  /// The batches for use on the device's current stream, which waits for the copies; the host does not.
  data::StepData finish(Moving& moving) const;

 private:
  c10::Stream stream_;
};

}  // namespace lora::train
