#include "lora/ops/quantized.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>
#include <type_traits>

#include "core/check.h"
#include "lora/io/dtype.h"
#include "ops/dequantize_rows.h"
#include "ops/lanes.h"
#include "ops/quantized_cuda.h"

namespace lora::ops {
namespace {

/// fp16 as its bits.
struct Fp16 {
  uint16_t bits;
};

/// Where blocks have their scales from: `absmax`, or (with `codes`) a second level.
struct BlockScales {
  const float* absmax;
  const uint8_t* codes;
  const float *nested_map, *nested_absmax;
  float nested_offset;
  int64_t nested_block_size;
};

constexpr int64_t kMostBlockNumbers = 4096;
constexpr float kPadding = 0;

#define LORA_KERNELS "ops/quantized_kernels.h"
#include "ops/kernels_of_all_sets.h"

/// Numbers that are worth a thread.
constexpr int64_t kGrain = 1 << 15;
/// Numbers that are converted to fp32 at a time; a multiple of every block size.
constexpr int64_t kPiece = int64_t{1} << 22;
constexpr int64_t kNestedBlock = 256;

/// Source: bitsandbytes 0.50.2 functional.py, get_4bit_type.
constexpr std::array<float, 16> kNf4 = {-1.0F,
                                        -0.6961928009986877F,
                                        -0.5250730514526367F,
                                        -0.39491748809814453F,
                                        -0.28444138169288635F,
                                        -0.18477343022823334F,
                                        -0.09105003625154495F,
                                        0.0F,
                                        0.07958029955625534F,
                                        0.16093020141124725F,
                                        0.24611230194568634F,
                                        0.33791524171829224F,
                                        0.44070982933044434F,
                                        0.5626170039176941F,
                                        0.7229568362236023F,
                                        1.0F};
constexpr std::array<float, 16> kFp4 = {
    0.0F, 0.0052083334885537624F,  0.6666666865348816F,  1.0F,  0.3333333432674408F,  0.5F,  0.1666666716337204F,  0.25F,
    0.0F, -0.0052083334885537624F, -0.6666666865348816F, -1.0F, -0.3333333432674408F, -0.5F, -0.1666666716337204F, -0.25F};

/// The codes of a map from the least number to the largest, and the bounds between neighbours.
struct Ranking {
  std::array<uint8_t, 16> order;
  std::array<float, 15> bounds;
};
Ranking ranking_of(const std::array<float, 16>& map) {
  Ranking ranking;
  std::iota(ranking.order.begin(), ranking.order.end(), uint8_t{0});
  std::ranges::stable_sort(ranking.order, {}, [&](uint8_t code) { return map[code]; });
  for (size_t i = 0; i < ranking.bounds.size(); ++i) {
    ranking.bounds[i] = (map[ranking.order[i]] + map[ranking.order[i + 1]]) / 2;
  }
  return ranking;
}

const std::array<float, 16>& map_of(QuantizedType type) { return type == QuantizedType::kNf4 ? kNf4 : kFp4; }

/// The signed dynamic map of 8 bits: seven exponents, the larger one the finer. Source: bitsandbytes 0.50.2 functional.py,
/// create_dynamic_map.
Tensor dynamic_map() {
  constexpr int kExponents = 7;
  std::vector<Tensor> parts = {at::tensor({0.0F, 1.0F})};
  for (int i = 0; i < kExponents; ++i) {
    const Tensor borders = at::linspace(0.1, 1, (int64_t{1} << i) + 1, at::kFloat);
    const Tensor middles = (borders.slice(0, 0, -1) + borders.slice(0, 1)) / 2.0;
    const double size = std::pow(10.0, i - (kExponents - 1));
    parts.push_back(middles * size);
    parts.push_back(middles * -size);
  }
  return std::get<0>(at::cat(parts).sort());
}

int64_t ceil_div(int64_t value, int64_t by) { return (value + by - 1) / by; }

Tensor empty(const std::vector<int64_t>& shape, at::ScalarType type, const at::Device& device = at::kCPU) {
  return at::empty(shape, at::TensorOptions(device).dtype(type));
}

/// LibTorch's mean of what it sums in one thread; more is summed piece by piece, so that the number of threads changes nothing.
Tensor mean_of(const Tensor& numbers) {
  constexpr int64_t kSummedByOneThread = at::internal::GRAIN_SIZE - 1;
  Tensor sum = numbers.slice(0, 0, kSummedByOneThread).sum();
  for (int64_t first = kSummedByOneThread; first < numbers.numel(); first += kSummedByOneThread) {
    sum = sum + numbers.slice(0, first, first + kSummedByOneThread).sum();
  }
  return sum / numbers.numel();
}

/// Scales in 8 bits: what is left of them without their mean.
void quantize_scales(io::QuantizedParts& parts) {
  const Tensor absmax = parts.absmax, mean = mean_of(absmax);
  parts.nested_offset = mean.item<float>();
  parts.nested_map = dynamic_map();
  const int64_t blocks = absmax.numel(), nested = ceil_div(blocks, kNestedBlock);
  const Tensor padded = at::constant_pad_nd(absmax - mean, {0, nested * kNestedBlock - blocks}).view({nested, kNestedBlock});
  parts.nested_absmax = padded.abs().amax(1);
  // A short block divides where the others multiply, as with the numbers themselves.
  const Tensor scale = parts.nested_absmax.clamp_min(1e-38).unsqueeze(1);
  Tensor scaled = padded * (1.0 / scale);
  if (blocks % kNestedBlock != 0) {
    parts.nested_absmax[-1] = scale[-1][0];
    scaled[-1] = padded[-1] / scale[-1];
  }
  const Tensor bounds = (parts.nested_map.slice(0, 0, -1) + parts.nested_map.slice(0, 1)) / 2;
  parts.absmax =
      at::bucketize(scaled.clamp(-1, 1), bounds, /*out_int32=*/true).to(at::kByte).flatten().slice(0, 0, blocks).clone();
}

/// Pieces of the weight's numbers in fp32: body(first number, piece).
template <class Body>
void each_piece(const Tensor& weight, int64_t size, const Body& body) {
  const Tensor flat = weight.contiguous().view(-1);
  for (int64_t first = 0; first < flat.numel(); first += size) {
    body(first, flat.slice(0, first, std::min(first + size, flat.numel())).to(at::kFloat));
  }
}

void require_finite(const Tensor& absmax) {
  require<ShapeError>(absmax.isfinite().all().item<bool>(),
                      "[ops.quantize] every weight must be finite; found one that is not; check the model's files");
}

void quantize_four_bits(const Tensor& weight, io::QuantizedParts& parts) {
  const int64_t block_size = parts.scheme.block_size, numbers = weight.numel();
  const auto& map = map_of(parts.scheme.type);
  const Ranking ranking = ranking_of(map);
  parts.map = at::tensor(at::ArrayRef<float>(map));
  parts.codes = empty({ceil_div(numbers, 2)}, at::kByte);
  parts.absmax = empty({ceil_div(numbers, block_size)}, at::kFloat);
  each_piece(weight, kPiece, [&](int64_t first, const Tensor& piece) {
    uint8_t* codes = parts.codes.mutable_data_ptr<uint8_t>() + first / 2;
    float* absmax = parts.absmax.mutable_data_ptr<float>() + first / block_size;
    at::parallel_for(0, ceil_div(piece.numel(), block_size), std::max<int64_t>(1, kGrain / block_size),
                     [&](int64_t begin, int64_t end) {
                       LORA_BEST_OF(quantize_blocks)
                       (pointer<const float>(piece), piece.numel(), block_size, ranking.bounds.data(), ranking.order.data(),
                        codes, absmax, begin, end);
                     });
  });
  require_finite(parts.absmax);
  if (parts.scheme.double_quantized) quantize_scales(parts);
}

void quantize_eight_bits(const Tensor& weight, io::QuantizedParts& parts) {
  const int64_t rows = weight.size(0), width = weight.size(1), rows_at_once = std::max<int64_t>(1, kPiece / width);
  parts.codes = empty(parts.shape, at::kChar);
  parts.absmax = empty({rows}, at::kFloat);
  each_piece(weight, rows_at_once * width, [&](int64_t first, const Tensor& piece) {
    const Tensor numbers = piece.view({-1, width}), largest = numbers.abs().amax(1);
    const int64_t row = first / width;
    parts.absmax.slice(0, row, row + largest.size(0)).copy_(largest);
    // A row of zeros has no scale: its codes are zeros.
    const Tensor factor = (127.0 / largest).masked_fill(largest == 0, 0).unsqueeze(1);
    parts.codes.slice(0, row, row + largest.size(0)).copy_((numbers * factor).round());
  });
  require_finite(parts.absmax);
}

/// The form of a quantised weight without its numbers.
void leave_empty(const at::Device& device, io::QuantizedParts& parts) {
  const int64_t rows = parts.shape[0], numbers = rows * parts.shape[1];
  if (parts.scheme.type == QuantizedType::kInt8) {
    parts.codes = empty(parts.shape, at::kChar, device);
    parts.absmax = empty({rows}, at::kFloat, device);
    return;
  }
  const int64_t blocks = ceil_div(numbers, parts.scheme.block_size);
  parts.codes = empty({ceil_div(numbers, 2)}, at::kByte, device);
  parts.map = empty({16}, at::kFloat, device);
  parts.absmax = empty({blocks}, parts.scheme.double_quantized ? at::kByte : at::kFloat, device);
  if (!parts.scheme.double_quantized) return;
  parts.nested_absmax = empty({ceil_div(blocks, kNestedBlock)}, at::kFloat, device);
  parts.nested_map = empty({256}, at::kFloat, device);
}

/// Calls body(a number of the kernels' type).
template <class Body>
void with_type(at::ScalarType type, const Body& body) {
  switch (type) {
    case at::kBFloat16:
      return body(Bf16());
    case at::kHalf:
      return body(Fp16());
    case at::kFloat:
      return body(float());
    case at::kDouble:
      return body(double());
    default:
      fail<ShapeError>("[ops.dequantize] the numbers must become bf16, fp16, fp32 or double; found {}", c10::toString(type));
  }
}

/// Numbers of 4 bits are those first that were quantised, as bitsandbytes has them, and then what is wanted.
std::optional<at::ScalarType> rounded_first(const io::QuantizedParts& parts, at::ScalarType wanted) {
  const at::ScalarType recorded = io::to_torch(parts.dtype, "ops.dequantize");
  const bool is_half = recorded == at::kHalf || recorded == at::kBFloat16;
  return is_half && parts.scheme.type != QuantizedType::kInt8 && recorded != wanted ? std::optional(recorded) : std::nullopt;
}

}  // namespace

bool can_begin_at(const io::QuantizedParts& parts, int64_t rows) {
  return parts.scheme.type == QuantizedType::kInt8 || rows * parts.shape[1] % parts.scheme.block_size == 0;
}

void dequantize_rows(const io::QuantizedParts& parts, int64_t first, const Tensor& target) {
  const int64_t rows = target.size(0), width = parts.shape[1];
  if (const auto recorded = rounded_first(parts, target.scalar_type())) {
    const Tensor rounded = at::empty(target.sizes(), target.options().dtype(*recorded));
    dequantize_rows(parts, first, rounded);
    target.copy_(rounded);
    return;
  }
  with_type(target.scalar_type(), [&](auto type) {
    using T = decltype(type);
    if (parts.scheme.type == QuantizedType::kInt8) {
      at::parallel_for(0, rows, std::max<int64_t>(1, kGrain / width), [&](int64_t begin, int64_t end) {
        LORA_BEST_OF(dequantize_int8<T>)
        (pointer<const int8_t>(parts.codes) + first * width, pointer<const float>(parts.absmax) + first, width,
         pointer<T>(target), begin, end);
      });
      return;
    }
    const bool nested = parts.scheme.double_quantized;
    const BlockScales scales{.absmax = nested ? nullptr : pointer<const float>(parts.absmax),
                             .codes = nested ? pointer<const uint8_t>(parts.absmax) : nullptr,
                             .nested_map = pointer<const float>(parts.nested_map),
                             .nested_absmax = pointer<const float>(parts.nested_absmax),
                             .nested_offset = parts.nested_offset,
                             .nested_block_size = parts.nested_block_size};
    const int64_t block_size = parts.scheme.block_size, skipped = first * width, count = skipped + rows * width;
    const int64_t grain = std::max<int64_t>(1, kGrain / block_size);
    at::parallel_for(skipped / block_size, ceil_div(count, block_size), grain, [&](int64_t begin, int64_t end) {
      LORA_BEST_OF(dequantize_blocks<T>)
      (pointer<const uint8_t>(parts.codes), pointer<const float>(parts.map), scales, block_size, count, skipped,
       pointer<T>(target), begin, end);
    });
  });
}

QuantizedTensor QuantizedTensor::quantize(const Tensor& weight, const QuantizationScheme& scheme) {
  check_quantization(scheme, "ops.quantize");
  require<ShapeError>(weight.dim() == 2 && weight.numel() > 0 && weight.is_floating_point(),
                      "[ops.quantize] a weight must be a matrix of a float type; found [{}] of type {}",
                      fmt::join(weight.sizes(), ", "), c10::toString(weight.scalar_type()));
  const at::NoGradGuard no_grad;
  io::QuantizedParts parts;
  parts.scheme = scheme;
  if (scheme.type == QuantizedType::kInt8) parts.scheme = {.type = QuantizedType::kInt8};
  parts.dtype = io::from_torch(weight.scalar_type());
  parts.shape = weight.sizes().vec();
  if (weight.is_meta()) {
    leave_empty(weight.device(), parts);
    return QuantizedTensor(std::move(parts));
  }
  const Tensor here = weight.detach().cpu();
  scheme.type == QuantizedType::kInt8 ? quantize_eight_bits(here, parts) : quantize_four_bits(here, parts);
  return QuantizedTensor(std::move(parts)).to(weight.device());
}

QuantizedTensor::QuantizedTensor(io::QuantizedParts parts)
    : parts_(std::make_shared<const io::QuantizedParts>(std::move(parts))) {}

Tensor QuantizedTensor::dequantize(at::ScalarType dtype) const {
  const Tensor target = empty(parts_->shape, dtype, device());
  dequantize_into(target);
  return target;
}

void QuantizedTensor::dequantize_into(Tensor target) const {
  require<ShapeError>(target.sizes() == at::IntArrayRef(parts_->shape) && target.is_contiguous() && target.device() == device(),
                      "[ops.dequantize] the target must be contiguous, [{}], on {}; found [{}] on {}",
                      fmt::join(parts_->shape, ", "), device().str(), fmt::join(target.sizes(), ", "), target.device().str());
  if (target.is_meta()) return;
  if (!target.is_cuda()) return dequantize_rows(*parts_, 0, target);
  if (const auto recorded = rounded_first(*parts_, target.scalar_type())) {
    target.copy_(dequantize(*recorded));
  } else {
    cuda::dequantize(*parts_, target);
  }
}

QuantizedTensor QuantizedTensor::to(const at::Device& device) const {
  if (this->device() == device) return *this;
  io::QuantizedParts moved = *parts_;
  for (Tensor* part : {&moved.codes, &moved.map, &moved.absmax, &moved.nested_absmax, &moved.nested_map}) {
    if (part->defined()) *part = part->to(device);
  }
  return QuantizedTensor(std::move(moved));
}

uint64_t QuantizedTensor::bytes() const {
  uint64_t sum = 0;
  for (const Tensor* part : {&parts_->codes, &parts_->map, &parts_->absmax, &parts_->nested_absmax, &parts_->nested_map}) {
    if (part->defined()) sum += part->nbytes();
  }
  return sum;
}

}  // namespace lora::ops
