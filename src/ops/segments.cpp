#include "lora/ops/segments.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <bit>
#include <map>

// Legend: N tokens, P places of all classes, W width.
namespace lora::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kLeastLength = 32;
constexpr int64_t kManySequences = 8, kSequenceMultiple = 4;

int64_t padded_length(int64_t length) {
  const int64_t power = std::max(kLeastLength, static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(length))));
  const int64_t three_quarters = power / 4 * 3;
  return length <= three_quarters && three_quarters % kLeastLength == 0 ? three_quarters : power;
}

int64_t padded_count(int64_t sequences) {
  if (sequences <= kManySequences) return sequences;
  return (sequences + kSequenceMultiple - 1) / kSequenceMultiple * kSequenceMultiple;
}

/// Rows `from` of x; the gradient of row i is that of the one place `back[i]`, where it stands for certain.
struct Rearranged : torch::autograd::Function<Rearranged> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& from, const Tensor& back) {
    context->save_for_backward({back});
    return x.index_select(0, from);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    return {gradients[0].index_select(0, context->get_saved_variables()[0]), Tensor(), Tensor()};
  }
};

/// The rows of y that stand for tokens; the others get a gradient of zero.
struct TakenBack : torch::autograd::Function<TakenBack> {
  static Tensor forward(AutogradContext* context, const Tensor& y_PW, const Tensor& place_N) {
    context->save_for_backward({place_N});
    context->saved_data["places"] = y_PW.size(0);
    return y_PW.index_select(0, place_N);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const Tensor place_N = context->get_saved_variables()[0];
    Tensor dy_PW = at::zeros({context->saved_data["places"].toInt(), gradients[0].size(1)}, gradients[0].options());
    dy_PW.index_copy_(0, place_N, gradients[0]);
    return {dy_PW, Tensor()};
  }
};

/// On the device, with nobody waiting for the copy.
Tensor moved(const Tensor& tensor, const at::Device& device) {
  return device.is_cuda() ? tensor.pin_memory().to(device, /*non_blocking=*/true) : tensor;
}

}  // namespace

Segments lengths_of(const std::vector<int64_t>& lengths) {
  Segments segments;
  segments.lengths = lengths;
  if (!lengths.empty()) segments.longest = *std::ranges::max_element(lengths);
  return segments;
}

Segments segments_of(const std::vector<int64_t>& lengths, const at::Device& device) {
  struct Sequence {
    int64_t begin, length;
  };
  std::map<int64_t, std::vector<Sequence>> classes;
  int64_t tokens = 0;
  Segments segments = lengths_of(lengths);
  for (const int64_t length : lengths) {
    classes[padded_length(length)].push_back({tokens, length});
    tokens += length;
  }
  std::vector<int64_t> place(static_cast<size_t>(tokens)), index;
  for (const auto& [length, sequences] : classes) {
    const auto count = static_cast<int64_t>(sequences.size());
    const int64_t rows = padded_count(count);
    const auto first = static_cast<int64_t>(index.size());
    index.resize(static_cast<size_t>(first + rows * length), 0);
    for (int64_t row = 0; row < count; ++row) {
      const auto [begin, own] = sequences[static_cast<size_t>(row)];
      for (int64_t i = 0; i < own; ++i) {
        const int64_t at = first + row * length + i;
        index[static_cast<size_t>(at)] = begin + i;
        place[static_cast<size_t>(begin + i)] = at;
      }
    }
    segments.classes.push_back({length, rows});
  }
  segments.index_P = moved(at::tensor(index, at::kLong), device);
  segments.place_N = moved(at::tensor(place, at::kLong), device);
  return segments;
}

Segments bounds_of(const std::vector<int64_t>& lengths, const at::Device& device) {
  Segments segments = lengths_of(lengths);
  std::vector<int32_t> bounds = {0};
  std::vector<int64_t> position;
  for (const int64_t length : lengths) {
    bounds.push_back(bounds.back() + static_cast<int32_t>(length));
    for (int64_t i = 0; i < length; ++i) position.push_back(i);
  }
  segments.bounds = moved(at::tensor(bounds, at::kInt), device);
  segments.position_1N = moved(at::tensor(position, at::kLong).unsqueeze(0), device);
  return segments;
}

Tensor laid_out(const Tensor& x_NW, const Segments& segments) {
  return Rearranged::apply(x_NW, segments.index_P, segments.place_N);
}

Tensor taken_back(const Tensor& y_PW, const Segments& segments) { return TakenBack::apply(y_PW, segments.place_N); }

}  // namespace lora::ops
