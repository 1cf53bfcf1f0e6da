#include "lora/nn/weight_stream.h"

#include <ATen/ATen.h>
#include <c10/util/accumulate.h>

#include <algorithm>

namespace lora::nn {
namespace {

/// Nobody else reads this memory any more.
bool are_free(const std::vector<at::Tensor>& room) {
  size_t defined = 0;
  for (const at::Tensor& weight : room) {
    if (weight.use_count() > 1) return false;
    if (weight.defined()) ++defined;
  }
  return std::all_of(room.begin(), room.end(),
                     [&](const at::Tensor& weight) { return !weight.defined() || weight.storage().use_count() == defined; });
}

template <class Weights>
bool fit(const std::vector<at::Tensor>& room, const Weights& weights) {
  return std::equal(room.begin(), room.end(), weights.begin(), weights.end(), [](const at::Tensor& memory, const auto& weight) {
    if (!memory.defined() || !weight.read) return !memory.defined() && !weight.read;
    return memory.sizes() == at::IntArrayRef(weight.shape) && memory.scalar_type() == weight.dtype;
  });
}

/// One piece of memory for all weights of a block, one after the other: those that make one product lie side by side.
template <class Weights>
std::vector<at::Tensor> memory_for(const Weights& weights, const at::Device& device) {
  std::vector<int64_t> begins;
  int64_t bytes = 0;
  for (const auto& weight : weights) {
    const auto item = static_cast<int64_t>(c10::elementSize(weight.dtype));
    begins.push_back((bytes + item - 1) / item);
    if (weight.read) bytes = (begins.back() + c10::multiply_integers(weight.shape)) * item;
  }
  const at::Tensor whole = at::empty({bytes}, at::TensorOptions(device).dtype(at::kByte));
  std::vector<at::Tensor> room(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    if (!weights[i].read) continue;
    room[i] = at::empty({0}, at::TensorOptions(device).dtype(weights[i].dtype));
    room[i].set_(whole.storage(), begins[i], weights[i].shape);
  }
  return room;
}

}  // namespace

WeightStream::Read WeightStream::from_host(at::Tensor weight) {
  return [weight = std::move(weight)](at::Tensor target) { target.copy_(weight, /*non_blocking=*/true); };
}

WeightStream::Read WeightStream::from_files(std::shared_ptr<const io::ModelFiles> files, std::string name) {
  return [files = std::move(files), name = std::move(name)](at::Tensor target) {
    if (target.is_cpu()) return files->read_into(name, target);
    // Pinned memory is not given to others before the copies out of it are done.
    const at::Tensor staging = at::empty(target.sizes(), target.options().device(at::kCPU).pinned_memory(true));
    files->read_into(name, staging);
    target.copy_(staging, /*non_blocking=*/true);
  };
}

WeightStream::WeightStream(const at::Device& device) : device_(device), side_(device) {}

WeightStream::Place WeightStream::add(size_t block, std::vector<int64_t> shape, at::ScalarType dtype, Read read) {
  const std::lock_guard lock(mutex_);
  if (blocks_.size() <= block) blocks_.resize(block + 1);
  blocks_[block].push_back({std::move(shape), dtype, std::move(read)});
  return {block, blocks_[block].size() - 1};
}

at::Tensor WeightStream::get(const Place& place) {
  const std::lock_guard lock(mutex_);
  if (rooms_[in_use_].block != place.block) move_to(place.block);
  return rooms_[in_use_].weights.at(place.index).alias();
}

at::Tensor WeightStream::copy(const Place& place) const {
  Weight weight;
  {
    const std::lock_guard lock(mutex_);
    weight = blocks_.at(place.block).at(place.index);
  }
  const at::NoGradGuard no_grad;
  const at::Tensor copy = at::empty(weight.shape, at::TensorOptions(device_).dtype(weight.dtype));
  weight.read(copy);
  return copy;
}

void WeightStream::drop(const Place& place) {
  const std::lock_guard lock(mutex_);
  for (Room& room : rooms_) {
    if (room.block != place.block) continue;
    if (room.arrival.valid()) room.arrival.wait();
    room = {};
  }
  blocks_.at(place.block).at(place.index).read = nullptr;
}

uint64_t WeightStream::bytes() const {
  const std::lock_guard lock(mutex_);
  uint64_t sum = 0;
  for (const auto& block : blocks_) {
    for (const Weight& weight : block) {
      if (weight.read) sum += static_cast<uint64_t>(c10::multiply_integers(weight.shape)) * c10::elementSize(weight.dtype);
    }
  }
  return sum;
}

void WeightStream::move_to(size_t block) {
  Room& next = rooms_[1 - in_use_];
  if (next.block != block) {
    send_for(next, block);
    ++missed_;
  }
  await(next);
  const auto left = rooms_[in_use_].block;
  in_use_ = 1 - in_use_;
  if (left) {
    if (before_) followers_[{*before_, *left}] = block;
    before_ = left;
  }
  Room& other = rooms_[1 - in_use_];
  const size_t expected = before_ ? expected_after(*before_, block) : std::min(block + 1, blocks_.size() - 1);
  if (expected != block && other.block != expected) send_for(other, expected);
}

/// What followed last time; before there was one, straight on, and back at the ends.
size_t WeightStream::expected_after(size_t before, size_t block) const {
  const auto known = followers_.find({before, block});
  if (known != followers_.end()) return known->second;
  const bool ascends = block > before;
  if (ascends) return block + 1 < blocks_.size() ? block + 1 : before;
  return block > 0 ? block - 1 : before;
}

void WeightStream::send_for(Room& room, size_t block) {
  if (room.arrival.valid()) room.arrival.wait();
  room.arrival = {};
  room.block = block;
  const auto& weights = blocks_.at(block);
  if (!fit(room.weights, weights) || !are_free(room.weights)) {
    room.weights.clear();
    room.weights = memory_for(weights, device_);
    // Nobody else gets the memory before what is copied into it has arrived.
    for (at::Tensor& weight : room.weights) {
      if (weight.defined() && side_.stream()) weight.record_stream(*side_.stream());
    }
  }
  // What computed from this memory may still be running.
  side_.wait_for_compute();
  ++brought_;
  room.arrival = std::async(std::launch::async, [this, &room, &weights] {
    const at::NoGradGuard no_grad;
    side_.run([&] {
      for (size_t i = 0; i < weights.size(); ++i) {
        if (weights[i].read) weights[i].read(room.weights[i]);
      }
    });
  });
}

void WeightStream::await(Room& room) {
  if (!room.arrival.valid()) return;
  try {
    room.arrival.get();
  } catch (...) {
    room = {};
    throw;
  }
  side_.let_compute_wait();
}

}  // namespace lora::nn
