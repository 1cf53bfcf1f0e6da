#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lora/io/model_files.h"
#include "lora/ops/side_stream.h"

namespace lora::nn {

/// Where the frozen weights of a model's layers stay.
enum class Offload {
  kNone,  ///< on the device
  kCpu,   ///< in pinned host memory; on the CPU the same as kNone
  kDisk,  ///< in the model's files
};

/// Frozen weights that stay elsewhere and pass through the device block by block (a block is a layer's weights): the one
/// in use is there, and the one that followed it last time is on its way, forwards and backwards. Memory for two blocks,
/// whatever the model. Owned by the layers whose weights it brings (see LinearImpl::stream_weight). Thread-safe.
class WeightStream {
 public:
  /// Fills a tensor of the device with a weight's values. Called on any thread; what it throws reaches whoever asks for
  /// the weight.
  using Read = std::function<void(at::Tensor target)>;
  /// From a tensor in host memory, pinned where the device is a GPU.
  static Read from_host(at::Tensor weight);
  /// From a model's files, in the target's type. A file that was cut short or changed is an IoError.
  static Read from_files(std::shared_ptr<const io::ModelFiles> files, std::string name);

  struct Place {
    size_t block, index;
  };

  explicit WeightStream(const at::Device& device);
  WeightStream(const WeightStream&) = delete;
  WeightStream& operator=(const WeightStream&) = delete;

  /// Before the first `get`, in any order of blocks.
  Place add(size_t block, std::vector<int64_t> shape, at::ScalarType dtype, Read read);
  /// The weight, for use now: its memory holds other values once blocks further on have been asked for. Waits for it
  /// when it is not there, and sends for the next block.
  at::Tensor get(const Place& place);
  /// A copy to keep, whatever block is in use.
  at::Tensor copy(const Place& place) const;
  /// The weight is no longer streamed: somebody holds it.
  void drop(const Place& place);

  at::Device device() const { return device_; }
  /// Weights that stream now, in bytes.
  uint64_t bytes() const;
  /// Blocks brought so far, and those among them that nobody had sent for in time.
  int64_t blocks_brought() const { return brought_; }
  int64_t blocks_missed() const { return missed_; }

 private:
  struct Weight {
    std::vector<int64_t> shape;
    at::ScalarType dtype;
    Read read;  ///< empty: dropped
  };
  /// Memory for one block.
  struct Room {
    std::optional<size_t> block;
    std::vector<at::Tensor> weights;
    std::future<void> arrival;  ///< valid while the block is on its way
  };

  void move_to(size_t block);
  void send_for(Room& room, size_t block);
  void await(Room& room);
  size_t expected_after(size_t before, size_t block) const;

  at::Device device_;
  ops::SideStream side_;
  mutable std::mutex mutex_;
  std::vector<std::vector<Weight>> blocks_;
  std::map<std::pair<size_t, size_t>, size_t> followers_;  ///< (the one before, a block) -> what followed
  std::optional<size_t> before_;                           ///< the block before the one in use
  size_t in_use_ = 0;                                      ///< index into rooms_
  int64_t brought_ = 0, missed_ = 0;
  std::array<Room, 2> rooms_;  // last: destroying it waits for what is on its way
};

}  // namespace lora::nn
