#include "lora/io/quantized.h"

#include <ATen/ATen.h>

#include <array>
#include <cstring>

#include "core/check.h"
#include "lora/formats/quantization.h"
#include "lora/io/dtype.h"

namespace lora::io {
namespace {

constexpr int64_t kCodes = 16, kNestedCodes = 256;
constexpr int64_t kLargestState = 1 << 16;
constexpr std::array kFourBitTypes = {QuantizedType::kNf4, QuantizedType::kFp4};

int64_t ceil_div(int64_t value, int64_t by) { return (value + by - 1) / by; }
int64_t numbers_of(const std::vector<int64_t>& shape) { return shape.at(0) * shape.at(1); }

std::string state_name(const std::string& name, QuantizedType type) {
  return fmt::format("{}.quant_state.bitsandbytes__{}", name, name_of(type));
}

/// LLM.int8 writes the scales beside the module, not beside the weight.
std::string beside_module(const std::string& name, std::string_view companion) {
  constexpr std::string_view kWeight = "weight";
  const std::string_view stem = name;
  if (!stem.ends_with(kWeight)) return fmt::format("{}.{}", name, companion);
  return fmt::format("{}{}", stem.substr(0, stem.size() - kWeight.size()), companion);
}

std::optional<QuantizedType> four_bit_type(const ModelFiles& files, const std::string& name) {
  std::optional<QuantizedType> found;
  for (const QuantizedType type : kFourBitTypes) {
    if (!files.contains(state_name(name, type))) continue;
    require<FormatError>(!found, "[{}] a weight must have one quant_state; {} has two", files.directory().string(), name);
    found = type;
  }
  return found;
}

bool is_int8(const ModelFiles& files, const std::string& name) {
  return files.contains(name) && files.entry(name).dtype == DType::kI8 && files.contains(beside_module(name, "SCB"));
}

std::string place_of(const ModelFiles& files, const std::string& name) {
  return fmt::format("{}: {}", files.directory().string(), name);
}

formats::QuantState read_state(const ModelFiles& files, const std::string& name, QuantizedType type) {
  const std::string state_tensor = state_name(name, type), where = place_of(files, state_tensor);
  const auto& entry = files.entry(state_tensor);
  const bool fits = entry.dtype == DType::kU8 && entry.shape.size() == 1 && entry.shape[0] <= kLargestState;
  require<FormatError>(fits, "[{}] a quant_state must be text in at most {} bytes; found {} [{}]", where, kLargestState,
                       safetensors_name(entry.dtype), fmt::join(entry.shape, ", "));
  const at::Tensor bytes = files.read(state_tensor);
  const std::string_view text(static_cast<const char*>(bytes.const_data_ptr()), static_cast<size_t>(bytes.numel()));
  const auto state = formats::parse_quant_state(text, where);
  require<FormatError>(state.type == type, "[{}] quant_type must be that of the tensor's name; found {}", where,
                       name_of(state.type));
  return state;
}

/// A companion tensor of exactly this type and number of values.
at::Tensor read_part(const ModelFiles& files, const std::string& name, DType dtype, int64_t count) {
  const auto& entry = files.entry(name);
  int64_t found = 1;
  for (const int64_t size : entry.shape) found *= size;
  require<FormatError>(entry.dtype == dtype && found == count, "[{}] there must be {} values of type {}; found {} of type {}",
                       place_of(files, name), count, safetensors_name(dtype), found, safetensors_name(entry.dtype));
  return files.read(name).flatten();
}

/// Codes are bytes, whatever type they are stored as (bnb_4bit_quant_storage).
at::Tensor read_codes(const ModelFiles& files, const std::string& name, int64_t numbers) {
  const auto& entry = files.entry(name);
  const auto bytes = static_cast<int64_t>(entry.end - entry.begin);
  require<FormatError>(bytes == ceil_div(numbers, 2), "[{}] {} numbers of 4 bits must take {} bytes; found {}",
                       place_of(files, name), numbers, ceil_div(numbers, 2), bytes);
  return files.read(name).flatten().view(at::kByte);
}

void require_finite(const at::Tensor& values, const ModelFiles& files, const std::string& name) {
  require<FormatError>(values.isfinite().all().item<bool>(), "[{}] every number must be finite; found one that is not",
                       place_of(files, name));
}

QuantizedParts read_four_bits(const ModelFiles& files, const std::string& name, QuantizedType type) {
  const auto state = read_state(files, name, type);
  const int64_t numbers = numbers_of(state.shape), blocks = ceil_div(numbers, state.block_size);
  QuantizedParts parts;
  parts.scheme = {type, state.block_size, state.nested.has_value()};
  parts.dtype = state.dtype;
  parts.shape = state.shape;
  parts.codes = read_codes(files, name, numbers);
  parts.map = read_part(files, name + ".quant_map", DType::kF32, kCodes);
  require_finite(parts.map, files, name + ".quant_map");
  parts.absmax = read_part(files, name + ".absmax", state.nested ? DType::kU8 : DType::kF32, blocks);
  if (!state.nested) return parts;
  parts.nested_block_size = state.nested->block_size;
  parts.nested_offset = static_cast<float>(state.nested->offset);
  parts.nested_absmax = read_part(files, name + ".nested_absmax", DType::kF32, ceil_div(blocks, parts.nested_block_size));
  parts.nested_map = read_part(files, name + ".nested_quant_map", DType::kF32, kNestedCodes);
  require_finite(parts.nested_map, files, name + ".nested_quant_map");
  return parts;
}

StoredWeight stored_int8(const ModelFiles& files, const std::string& name) {
  const auto& entry = files.entry(name);
  require<FormatError>(entry.shape.size() == 2, "[{}] a weight of 8 bits must have two sizes; found [{}]", place_of(files, name),
                       fmt::join(entry.shape, ", "));
  // The file does not say what was quantised; bitsandbytes quantises fp16.
  return {entry.shape, DType::kF16, QuantizationScheme{.type = QuantizedType::kInt8}};
}

QuantizedParts read_int8(const ModelFiles& files, const std::string& name) {
  const StoredWeight stored = stored_int8(files, name);
  const std::string format = beside_module(name, "weight_format");
  if (files.contains(format)) {
    const at::Tensor value = read_part(files, format, DType::kU8, 1);
    require<FormatError>(value.item<uint8_t>() == 0, "[{}] weights of 8 bits must be stored by rows (0); found format {}",
                         place_of(files, format), value.item<uint8_t>());
  }
  QuantizedParts parts;
  parts.scheme = *stored.scheme;
  parts.dtype = stored.dtype;
  parts.shape = stored.shape;
  parts.codes = files.read(name);
  parts.absmax = read_part(files, beside_module(name, "SCB"), DType::kF32, stored.shape[0]);
  return parts;
}

TensorSource source(std::string name, at::Tensor tensor) {
  const DType dtype = from_torch(tensor.scalar_type());
  auto shape = tensor.sizes().vec();
  return {std::move(name), dtype, std::move(shape), [tensor = std::move(tensor)] { return tensor; }};
}

at::Tensor as_bytes(const std::string& text) {
  at::Tensor bytes = at::empty({static_cast<int64_t>(text.size())}, at::kByte);
  std::memcpy(bytes.mutable_data_ptr(), text.data(), text.size());
  return bytes;
}

formats::QuantState state_of(const QuantizedParts& parts) {
  formats::QuantState state{parts.scheme.type, parts.scheme.block_size, parts.dtype, parts.shape, {}};
  if (parts.scheme.double_quantized)
    state.nested = {parts.nested_block_size, DType::kF32, static_cast<double>(parts.nested_offset)};
  return state;
}

}  // namespace

StoredWeight stored_weight(const ModelFiles& files, const std::string& name) {
  if (const auto type = four_bit_type(files, name)) {
    const auto state = read_state(files, name, *type);
    return {state.shape, state.dtype, QuantizationScheme{*type, state.block_size, state.nested.has_value()}};
  }
  if (is_int8(files, name)) return stored_int8(files, name);
  return {files.entry(name).shape, files.entry(name).dtype, std::nullopt};
}

std::vector<std::string> companions_of(const ModelFiles& files, const std::string& name) {
  std::vector<std::string> found;
  const auto add = [&](std::string companion) {
    if (files.contains(companion)) found.push_back(std::move(companion));
  };
  if (const auto type = four_bit_type(files, name)) {
    add(state_name(name, *type));
    for (const char* part : {"absmax", "quant_map", "nested_absmax", "nested_quant_map"}) add(fmt::format("{}.{}", name, part));
  } else if (is_int8(files, name)) {
    for (const char* part : {"SCB", "weight_format"}) add(beside_module(name, part));
  }
  return found;
}

QuantizedParts read_quantized(const ModelFiles& files, const std::string& name) {
  if (const auto type = four_bit_type(files, name)) return read_four_bits(files, name, *type);
  require<FormatError>(is_int8(files, name), "[{}] the weight must be quantised; it is plain", place_of(files, name));
  return read_int8(files, name);
}

std::vector<TensorSource> quantized_sources(const std::string& name, const std::shared_ptr<const QuantizedParts>& parts) {
  if (parts->scheme.type == QuantizedType::kInt8) {
    return {source(name, parts->codes), source(beside_module(name, "SCB"), parts->absmax),
            source(beside_module(name, "weight_format"), at::zeros({}, at::kByte))};
  }
  std::vector<TensorSource> sources = {source(name, parts->codes.unsqueeze(1)), source(name + ".absmax", parts->absmax),
                                       source(name + ".quant_map", parts->map)};
  if (parts->scheme.double_quantized) {
    sources.push_back(source(name + ".nested_absmax", parts->nested_absmax));
    sources.push_back(source(name + ".nested_quant_map", parts->nested_map));
  }
  sources.push_back(source(state_name(name, parts->scheme.type), as_bytes(formats::write_quant_state(state_of(*parts)))));
  return sources;
}

}  // namespace lora::io
