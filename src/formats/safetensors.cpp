#include "lora/formats/safetensors.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <tuple>
#include <utility>

#include "core/check.h"
#include "formats/json.h"
#include "formats/tensor_bytes.h"
#include "lora/core/text.h"

namespace lora::formats {
namespace {

constexpr uint64_t kLengthBytes = 8;
/// What LibTorch can index.
constexpr size_t kMaxDimensions = 64;
constexpr std::string_view kMetadataKey = "__metadata__";

void require_usable_name(std::string_view name, std::string_view where) {
  require<FormatError>(name.find('\0') == std::string_view::npos,
                       "[{}] names of tensors must not hold NUL; found {:?}; rename the tensor", where, name);
}

/// Reads the members of one tensor's entry in the header.
class EntryReader {
 public:
  EntryReader(const std::string& name, const Json& value, std::string_view where) : name_(name), value_(value), where_(where) {}

  TensorEntry read() const {
    check(value_.is_object(), "be an object with dtype, shape and data_offsets");
    TensorEntry entry{.name = name_, .dtype = read_dtype(), .shape = read_shape()};
    const Json& offsets = member("data_offsets");
    check(offsets.is_array() && offsets.size() == 2 && offsets[0].is_number_unsigned() && offsets[1].is_number_unsigned(),
          "have two whole numbers as data_offsets");
    entry.begin = offsets[0].get<uint64_t>();
    entry.end = offsets[1].get<uint64_t>();
    return entry;
  }

 private:
  DType read_dtype() const {
    const Json& dtype = member("dtype");
    check(dtype.is_string(), "have a text as dtype");
    const auto known = dtype_from_safetensors(dtype.get_ref<const std::string&>());
    check(known.has_value(), "have a dtype that is known");
    return *known;
  }

  std::vector<int64_t> read_shape() const {
    const Json& shape = member("shape");
    check(shape.is_array() && shape.size() <= kMaxDimensions, "have a list of at most 64 as shape");
    std::vector<int64_t> sizes;
    sizes.reserve(shape.size());
    for (const Json& size : shape) {
      check(size.is_number_unsigned() && size.get<uint64_t>() <= INT64_MAX, "have whole numbers as shape");
      sizes.push_back(size.get<int64_t>());
    }
    return sizes;
  }

  const Json& member(const char* key) const {
    const auto found = value_.find(key);
    check(found != value_.end(), "have dtype, shape and data_offsets");
    return *found;
  }

  void check(bool holds, std::string_view must) const {
    if (holds) return;
    // The value may be megabytes: its beginning says enough.
    const std::string found = value_.dump().substr(0, 120);
    fail<FormatError>(
        "[{}] the tensor {:?} must {}; found {:?}; the file is damaged or not "
        "safetensors",
        where_, name_, must, to_utf8(found));
  }

  const std::string& name_;
  const Json& value_;
  std::string_view where_;
};

std::map<std::string, std::string> read_metadata(const Json& value, std::string_view where) {
  std::map<std::string, std::string> metadata;
  if (value.is_null()) return metadata;
  const bool is_text_map = value.is_object() && std::ranges::all_of(value, [](const Json& member) { return member.is_string(); });
  require<FormatError>(is_text_map,
                       "[{}] __metadata__ must be a map from text to text; found something else; "
                       "the file is damaged or not safetensors",
                       where);
  for (const auto& [key, text] : value.items()) metadata.emplace(key, text.get<std::string>());
  return metadata;
}

/// The tensors must tile the data: no hole, no overlap, nothing left over.
void check_layout(const SafetensorsHeader& header, uint64_t file_size, std::string_view where) {
  uint64_t position = 0;
  for (const TensorEntry& tensor : header.tensors) {
    require<FormatError>(tensor.begin == position && tensor.end >= tensor.begin,
                         "[{}] the tensor {:?} must begin at byte {} of the data, where the one "
                         "before it ends; found {} to {}; the file is damaged",
                         where, tensor.name, position, tensor.begin, tensor.end);
    const auto bytes = tensor_bytes(tensor.dtype, tensor.shape);
    require<FormatError>(bytes.has_value(),
                         "[{}] the size of the tensor {:?} must be a whole number of bytes that "
                         "fits 63 bits; found {} {}; the file is damaged",
                         where, tensor.name, safetensors_name(tensor.dtype), tensor.shape);
    require<FormatError>(*bytes == tensor.end - tensor.begin,
                         "[{}] the tensor {:?} of {} {} must take {} bytes; found {}; the file is "
                         "damaged",
                         where, tensor.name, safetensors_name(tensor.dtype), tensor.shape, *bytes, tensor.end - tensor.begin);
    position = tensor.end;
  }
  const uint64_t data_bytes = file_size - header.data_start;
  require<FormatError>(position == data_bytes,
                       "[{}] must hold {} bytes of data after the header; found {}; the file is "
                       "truncated or has something appended",
                       where, position, data_bytes);
}

void assign_offsets(std::vector<TensorEntry>& tensors) {
  uint64_t position = 0;
  for (TensorEntry& tensor : tensors) {
    const auto bytes = tensor_bytes(tensor.dtype, tensor.shape);
    tensor.begin = position;
    const bool fits = bytes && !__builtin_add_overflow(position, *bytes, &position);
    require<FormatError>(fits,
                         "[safetensors] the tensor {:?} must have a size in whole bytes; found {} "
                         "{}; it cannot be written",
                         tensor.name, safetensors_name(tensor.dtype), tensor.shape);
    tensor.end = position;
  }
}

void check_writable_names(const std::vector<TensorEntry>& tensors) {
  std::vector<std::string_view> names;
  for (const TensorEntry& tensor : tensors) {
    require<FormatError>(is_utf8(tensor.name) && tensor.name != kMetadataKey,
                         "[safetensors] names of tensors must be UTF-8 and not __metadata__; found "
                         "{:?}; rename the tensor",
                         tensor.name);
    require_usable_name(tensor.name, "safetensors");
    names.push_back(tensor.name);
  }
  std::ranges::sort(names);
  const auto twice = std::ranges::adjacent_find(names);
  require<FormatError>(twice == names.end(), "[safetensors] names of tensors must differ; found {:?} twice; rename one",
                       twice == names.end() ? std::string_view() : *twice);
}

std::string json_text(std::string_view text) { return Json(text).dump(); }

}  // namespace

uint64_t safetensors_header_length(std::span<const std::byte> head, uint64_t file_size, std::string_view where,
                                   const SafetensorsLimits& limits) {
  require<FormatError>(file_size >= kLengthBytes && head.size() >= kLengthBytes,
                       "[{}] must have at least 8 bytes to be a safetensors file; found {}; the "
                       "file is truncated or not safetensors",
                       where, std::min<uint64_t>(file_size, head.size()));
  uint64_t length = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) length |= std::to_integer<uint64_t>(head[i]) << (8 * i);
  require<FormatError>(length <= limits.max_header_bytes,
                       "[{}] the safetensors header must have at most {} bytes; found {}; the file "
                       "is damaged or not safetensors",
                       where, limits.max_header_bytes, length);
  require<FormatError>(length <= file_size - kLengthBytes,
                       "[{}] the safetensors header must end inside the file of {} bytes; found a "
                       "header of {}; the file is truncated or not safetensors",
                       where, file_size, length);
  return length;
}

SafetensorsHeader parse_safetensors_header(std::span<const std::byte> head, uint64_t file_size, std::string_view where,
                                           const SafetensorsLimits& limits) {
  const uint64_t length = safetensors_header_length(head, file_size, where, limits);
  require<FormatError>(head.size() - kLengthBytes >= length,
                       "[{}] the safetensors header must be read whole, {} bytes; found {}; the "
                       "file changed while it was read",
                       where, length, head.size() - kLengthBytes);
  const std::string_view text(reinterpret_cast<const char*>(head.data()) + kLengthBytes, length);
  require<FormatError>(!text.starts_with("\xEF\xBB\xBF"),
                       "[{}] the safetensors header must be plain JSON; found a byte-order mark; "
                       "the file is damaged",
                       where);
  // A tensor is 6 values and its dimensions.
  const JsonLimits json_limits{
      .max_depth = 8, .max_bytes = limits.max_header_bytes, .max_values = 1000 + 16 * limits.max_tensors};
  const Json json = parse_json(text, where, json_limits);
  require<FormatError>(json.is_object(),
                       "[{}] the safetensors header must be a JSON object; found {}; the file is "
                       "damaged or not safetensors",
                       where, json.type_name());
  require<FormatError>(json.size() <= limits.max_tensors + 1,
                       "[{}] must hold at most {} tensors; found {}; raise the limit if the file "
                       "is to be trusted",
                       where, limits.max_tensors, json.size());

  SafetensorsHeader header{.data_start = kLengthBytes + length};
  header.tensors.reserve(json.size());
  for (const auto& [name, value] : json.items()) {
    if (name == kMetadataKey) {
      header.metadata = read_metadata(value, where);
    } else {
      require_usable_name(name, where);
      header.tensors.push_back(EntryReader(name, value, where).read());
    }
  }
  std::ranges::stable_sort(header.tensors, {}, [](const TensorEntry& tensor) { return std::pair(tensor.begin, tensor.end); });
  check_layout(header, file_size, where);
  return header;
}

std::string write_safetensors_header(std::vector<TensorEntry>& tensors, const std::map<std::string, std::string>& metadata) {
  check_writable_names(tensors);
  std::ranges::sort(
      tensors, [](const TensorEntry& a, const TensorEntry& b) { return std::tie(b.dtype, a.name) < std::tie(a.dtype, b.name); });
  assign_offsets(tensors);

  std::vector<std::string> members;
  members.reserve(tensors.size() + 1);
  if (!metadata.empty()) members.push_back(json_text(kMetadataKey) + ":" + Json(metadata).dump());
  for (const TensorEntry& tensor : tensors) {
    members.push_back(fmt::format(R"({}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", json_text(tensor.name),
                                  safetensors_name(tensor.dtype), fmt::join(tensor.shape, ","), tensor.begin, tensor.end));
  }
  std::string json = fmt::format("{{{}}}", fmt::join(members, ","));
  json.append((kLengthBytes - json.size() % kLengthBytes) % kLengthBytes, ' ');

  std::string bytes;
  for (size_t i = 0; i < kLengthBytes; ++i) {
    bytes.push_back(static_cast<char>(static_cast<uint64_t>(json.size()) >> (8 * i) & 0xFF));
  }
  return bytes + json;
}

std::map<std::string, std::string> parse_safetensors_index(std::string_view json, std::string_view where) {
  const Json root = parse_json(json, where);
  const auto weights = root.is_object() ? root.find("weight_map") : root.end();
  const bool is_map = root.is_object() && weights != root.end() && weights->is_object() && !weights->empty();
  require<FormatError>(is_map,
                       "[{}] must hold a weight_map from tensor names to files; found none; is it "
                       "the index of a sharded model?",
                       where);
  std::map<std::string, std::string> shards;
  for (const auto& [name, value] : weights->items()) {
    require_usable_name(name, where);
    const std::string shard = value.is_string() ? value.get<std::string>() : std::string();
    const bool is_file_name =
        !shard.empty() && shard != "." && shard != ".." && shard.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
    require<FormatError>(is_file_name,
                         "[{}] the file of tensor {:?} must be a plain file name in the same "
                         "folder; found {:?}; correct the index",
                         where, name, value.dump().substr(0, 120));
    shards.emplace(name, shard);
  }
  return shards;
}

}  // namespace lora::formats
