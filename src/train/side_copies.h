// Copies to a GPU beside its work.
#pragma once

#include <vector>

#include "lora/data/loader.h"
#include "lora/ops/side_stream.h"

namespace lora::train {

/// Moves the batches of coming steps to a GPU on a stream of their own, while it computes.
class SideCopies {
 public:
  explicit SideCopies(const at::Device& device) : device_(device), side_(device) {}

  /// A step's batches on their way; the originals are kept, since the copies read them.
  struct Moving {
    data::StepData step;
    std::vector<Batch> originals;
  };
  /// Starts the copies and returns at once, from pinned memory as it is, else after pinning it.
  Moving start(data::StepData step) const;
  /// The batches for use on the device's current stream, which waits for all copies started so far; the host does not.
  data::StepData finish(Moving& moving) const;

 private:
  at::Device device_;
  ops::SideStream side_;
};

}  // namespace lora::train
