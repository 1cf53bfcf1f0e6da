#include "lora/nn/weight_stream.h"

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <set>
#include <thread>

#include "catch.h"
#include "gradcheck.h"
#include "lora/core/error.h"
#include "lora/io/safetensors.h"
#include "lora/nn/linear_group.h"
#include "lora/nn/probe.h"
#include "support.h"

using namespace lora;
using lora::testing::message_of;
using lora::testing::ScratchFolder;
using nn::WeightStream;

namespace {

constexpr size_t kBlocks = 5, kPerBlock = 2;

at::Tensor value_of(size_t block, size_t index) { return at::full({3, 4}, static_cast<double>(10 * block + index), at::kFloat); }

/// Five blocks of two weights, and how often each was read.
struct Counted {
  std::array<std::atomic<int>, kBlocks> reads = {};
  WeightStream stream{at::kCPU};

  Counted() {
    for (size_t block = 0; block < kBlocks; ++block) {
      for (size_t index = 0; index < kPerBlock; ++index) {
        stream.add(block, {3, 4}, at::kFloat, [this, block, index](at::Tensor target) {
          ++reads[block];
          target.copy_(value_of(block, index));
        });
      }
    }
  }

  void visit(size_t block) {
    for (size_t index = 0; index < kPerBlock; ++index) CHECK(at::equal(stream.get({block, index}), value_of(block, index)));
  }
  void up() {
    for (size_t block = 0; block < kBlocks; ++block) visit(block);
  }
  void down() {
    for (size_t block = kBlocks; block-- > 0;) visit(block);
  }
};

nn::Linear frozen(int64_t in, int64_t out, bool bias, at::ScalarType dtype) {
  nn::Linear layer(nn::LinearOptions{in, out, bias, {dtype, at::kCPU, true}});
  layer->weight.set_requires_grad(false);
  if (bias) layer->bias.set_requires_grad(false);
  return layer;
}

/// A copy of a layer whose weight streams from the original's.
nn::Linear streaming_twin(const nn::Linear& layer, const std::shared_ptr<WeightStream>& stream, size_t block) {
  nn::Linear twin =
      frozen(layer->options.in_features, layer->options.out_features, layer->bias.defined(), layer->weight.scalar_type());
  if (layer->bias.defined()) twin->bias.copy_(layer->bias);
  twin->stream_weight(stream, block, WeightStream::from_host(layer->weight));
  return twin;
}

}  // namespace

TEST_CASE("WeightStream: every block in both directions, from memory for two", "[nn]") {
  Counted counted;
  std::set<const void*> memory;
  for (int pass = 0; pass < 3; ++pass) {
    counted.up();
    counted.down();
    for (size_t block = 0; block < kBlocks; ++block) memory.insert(counted.stream.get({block, 0}).const_data_ptr());
    counted.down();
  }
  CHECK(memory.size() == 2);
  CHECK(counted.stream.bytes() == kBlocks * kPerBlock * 12 * 4);
}

TEST_CASE("WeightStream: what is needed next is sent for before it is asked for", "[nn]") {
  Counted counted;
  counted.up();
  counted.down();
  CHECK(counted.stream.blocks_missed() == 1);  // the very first
  SECTION("training: up and down again, turning without reading a block twice") {
    const auto before = counted.stream.blocks_brought();
    for (int step = 0; step < 3; ++step) {
      counted.up();
      counted.down();
    }
    CHECK(counted.stream.blocks_missed() == 1);
    CHECK(counted.stream.blocks_brought() == before + 3 * 2 * static_cast<int64_t>(kBlocks - 2));
  }
  SECTION("evaluation: up and up again, learned after one time") {
    counted.up();
    counted.up();
    const auto missed = counted.stream.blocks_missed();
    CHECK(missed <= 3);
    counted.up();
    counted.up();
    CHECK(counted.stream.blocks_missed() == missed);
  }
}

TEST_CASE("WeightStream: a weight that somebody still holds is not written over", "[nn]") {
  Counted counted;
  const auto held = counted.stream.get({1, 1});
  counted.up();
  CHECK(at::equal(held, value_of(1, 1)));
  counted.down();
  CHECK(at::equal(held, value_of(1, 1)));
}

TEST_CASE("WeightStream: nor one held below autograd, where a view does not know its base", "[nn]") {
  Counted counted;
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  const auto held = counted.stream.get({1, 1});
  counted.up();
  CHECK(at::equal(held, value_of(1, 1)));
}

TEST_CASE("WeightStream: nor one that its read has kept", "[nn]") {
  WeightStream stream(at::kCPU);
  std::vector<at::Tensor> kept;
  for (size_t block = 0; block < kBlocks; ++block) {
    stream.add(block, {3, 4}, at::kFloat, [&kept, block](at::Tensor target) {
      target.copy_(value_of(block, 0));
      if (block == 1) kept.push_back(target);
    });
  }
  for (size_t block = 0; block < kBlocks; ++block) stream.get({block, 0});
  REQUIRE(kept.size() == 1);
  CHECK(at::equal(kept[0], value_of(1, 0)));
}

TEST_CASE("WeightStream: a dropped weight is read no more, the others of its block are", "[nn]") {
  Counted counted;
  counted.visit(2);
  CHECK(at::equal(counted.stream.copy({2, 1}), value_of(2, 1)));
  counted.stream.drop({2, 1});
  const int before = counted.reads[2];
  CHECK(at::equal(counted.stream.get({2, 0}), value_of(2, 0)));
  CHECK(counted.reads[2] == before + 1);
  CHECK(counted.stream.bytes() == (kBlocks * kPerBlock - 1) * 12 * 4);
}

TEST_CASE("WeightStream: weights of several types share a block's memory without overlap", "[nn]") {
  WeightStream stream(at::kCPU);
  stream.add(0, {3}, at::kBFloat16, [](at::Tensor target) { target.fill_(1); });
  stream.add(0, {2}, at::kFloat, [](at::Tensor target) { target.fill_(2); });
  stream.add(0, {1}, at::kDouble, [](at::Tensor target) { target.fill_(3); });
  const auto first = stream.get({0, 0}), second = stream.get({0, 1}), third = stream.get({0, 2});
  CHECK(at::equal(first, at::full({3}, 1).to(at::kBFloat16)));
  CHECK(at::equal(second, at::full({2}, 2.0f)));
  CHECK(at::equal(third, at::full({1}, 3.0, at::kDouble)));
}

TEST_CASE("WeightStream: blocks of other shapes and types get memory of their own", "[nn]") {
  WeightStream stream(at::kCPU);
  const std::vector<std::vector<int64_t>> shapes = {{3, 4}, {5}, {4, 3}, {24}, {2, 6}, {7}, {2, 6}};
  const auto type_of = [](size_t block) { return block == 6 ? at::kBFloat16 : at::kFloat; };
  for (size_t block = 0; block < shapes.size(); ++block) {
    stream.add(block, shapes[block], type_of(block), [block](at::Tensor target) { target.fill_(static_cast<double>(block)); });
  }
  for (int pass = 0; pass < 2; ++pass) {
    for (size_t block = 0; block < shapes.size(); ++block) {
      const auto weight = stream.get({block, 0});
      CHECK(weight.scalar_type() == type_of(block));  // at::equal takes types that differ
      CHECK(at::equal(weight, at::full(shapes[block], static_cast<double>(block), type_of(block))));
    }
  }
}

TEST_CASE("WeightStream: dropping a weight waits for its block that is on its way", "[nn]") {
  WeightStream stream(at::kCPU);
  std::atomic<int> arrived = 0;
  const auto slow = [&](at::Tensor target) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    target.fill_(1);
    ++arrived;
  };
  stream.add(0, {2}, at::kFloat, [](at::Tensor target) { target.fill_(0); });
  stream.add(1, {2}, at::kFloat, slow);
  stream.add(1, {2}, at::kFloat, slow);
  stream.get({0, 0});  // sends for block 1
  stream.drop({1, 0});
  CHECK(arrived == 2);
  CHECK(at::equal(stream.get({1, 1}), at::ones({2})));
}

TEST_CASE("WeightStream: what a read throws reaches whoever asks for the weight", "[nn]") {
  WeightStream stream(at::kCPU);
  bool broken = true;
  const auto fill = [](at::Tensor target) { target.fill_(1); };
  stream.add(0, {2}, at::kFloat, fill);
  stream.add(1, {2}, at::kFloat, [&](at::Tensor target) {
    if (broken) throw IoError("[file] is gone");
    fill(target);
  });
  CHECK_NOTHROW(stream.get({0, 0}));
  CHECK(message_of<IoError>([&] { stream.get({1, 0}); }) == "[file] is gone");
  CHECK(at::equal(stream.get({0, 0}), at::ones({2})));
  broken = false;
  CHECK(at::equal(stream.get({1, 0}), at::ones({2})));
}

TEST_CASE("WeightStream: from files, in the type of the run; a file that changes is an error that names it", "[nn]") {
  const ScratchFolder folder;
  const auto first = at::randn({40, 1000}), second = at::randn({8, 6});
  io::save_model_files(
      folder.path(),
      {{"first", DType::kF32, {40, 1000}, [&] { return first; }}, {"second", DType::kF32, {8, 6}, [&] { return second; }}}, 100);
  const auto files = std::make_shared<const io::ModelFiles>(folder.path());
  WeightStream stream(at::kCPU);
  const auto a = stream.add(0, {40, 1000}, at::kBFloat16, WeightStream::from_files(files, "first"));
  const auto b = stream.add(1, {8, 6}, at::kFloat, WeightStream::from_files(files, "second"));
  stream.add(2, {8, 6}, at::kFloat, WeightStream::from_files(files, "second"));
  CHECK(at::equal(stream.get(a), first.to(at::kBFloat16)));
  CHECK(at::equal(stream.get(b), second));
  CHECK(at::equal(stream.get({2, 0}), second));  // block 0 has left

  const Path shard = folder / "model-00001-of-00002.safetensors";
  SECTION("cut short") {
    std::filesystem::resize_file(shard, 200);
    CHECK(message_of<IoError>([&] { stream.copy(a); }).find(shard.string()) != std::string::npos);
    CHECK(message_of<IoError>([&] { stream.get(a); }).find("must not change while in use") != std::string::npos);
  }
  SECTION("written over") {
    std::fstream(shard, std::ios::binary | std::ios::in | std::ios::out).seekp(-4, std::ios::end).write("abcd", 4);
    CHECK(message_of<IoError>([&] { stream.get(a); }).find(shard.string()) != std::string::npos);
  }
  SECTION("another file of that name does not matter") {
    std::filesystem::rename(shard, folder / "aside");
    folder.write(shard.filename().string(), "no tensors");
    CHECK(at::equal(stream.get(a), first.to(at::kBFloat16)));
  }
}

TEST_CASE("A streamed layer computes what a held one does, and autograd keeps no weight", "[nn]") {
  at::manual_seed(3);
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16);
  const bool trains_bias = GENERATE(false, true);
  auto stream = std::make_shared<WeightStream>(at::kCPU);
  std::vector<nn::Linear> held, streamed;
  for (size_t i = 0; i < 3; ++i) {
    held.push_back(frozen(64, 64, true, dtype));
    streamed.push_back(streaming_twin(held[i], stream, i));
    held[i]->bias.set_requires_grad(trains_bias);
    streamed[i]->bias.set_requires_grad(trains_bias);
    CHECK(streamed[i]->weight.isnan().all().item<bool>());
    CHECK(streamed[i]->weight.sizes() == held[i]->weight.sizes());
  }
  const auto input = at::randn({2, 5, 64}).to(dtype);
  const auto run = [&](std::vector<nn::Linear>& layers) {
    const auto x = input.clone().requires_grad_();
    at::Tensor y = x;
    for (auto& layer : layers) y = layer->forward(y).tanh();
    const auto brought = stream->blocks_brought();
    y.sum().backward();
    if (layers[1]->weight_is_streamed()) CHECK(stream->blocks_brought() > brought);
    std::vector<at::Tensor> results = {y.detach(), x.grad()};
    for (auto& layer : layers) {
      if (trains_bias) results.push_back(layer->bias.grad());
    }
    return results;
  };
  const auto expected = run(held), found = run(streamed);
  for (size_t i = 0; i < expected.size(); ++i) CHECK(at::equal(found[i], expected[i]));

  CHECK(at::equal(streamed[1]->weight_value(), held[1]->weight));
  CHECK(streamed[1]->weight_is_streamed());
  streamed[1]->restore_weight();
  CHECK_FALSE(streamed[1]->weight_is_streamed());
  CHECK(at::equal(streamed[1]->weight, held[1]->weight));
  CHECK(at::equal(run(streamed)[0], expected[0]));
}

TEST_CASE("A streamed group gives the same bits as a held one, packed or not, before and after gradients", "[nn]") {
  at::manual_seed(4);
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16);
  auto stream = std::make_shared<WeightStream>(at::kCPU);
  std::vector<nn::Linear> held = {frozen(512, 512, false, dtype), frozen(512, 256, true, dtype)}, streamed;
  for (const auto& layer : held) streamed.push_back(streaming_twin(layer, stream, 0));
  nn::LinearGroup held_group(held), streamed_group(streamed);
  nn::FastPaths fast;
  fast.packed_weights = GENERATE(true, false);
  for (const int64_t rows : {2, 96}) {
    const auto input = at::randn({rows, 512}).to(dtype), direction = at::randn({rows, 768}).to(dtype);
    const auto check = [&] {
      const auto x = input.clone().requires_grad_(), z = input.clone().requires_grad_();
      const auto expected = held_group.forward(x, fast), found = streamed_group.forward(z, fast);
      CHECK(at::equal(found, expected));
      if (!at::GradMode::is_enabled()) return;
      expected.backward(direction);
      found.backward(direction);
      CHECK(at::equal(z.grad(), x.grad()));
    };
    {
      const at::NoGradGuard no_grad;
      check();
    }
    check();
    const at::NoGradGuard no_grad;
    check();
  }
}

TEST_CASE("Streamed products: backward equals finite differences", "[nn]") {
  at::manual_seed(5);
  auto stream = std::make_shared<WeightStream>(at::kCPU);
  const auto layer = frozen(4, 3, true, at::kDouble);
  std::vector<nn::Linear> streamed = {streaming_twin(layer, stream, 0), streaming_twin(layer, stream, 1)};
  nn::LinearGroup group(streamed);
  check_gradients([&](const auto& in) { return group.forward(in[0], {}); }, {random_double({2, 4})});
  check_gradients([&](const auto& in) { return streamed[0]->forward(in[0]); }, {random_double({2, 4})});
}
