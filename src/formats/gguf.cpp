#include "lora/formats/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>
#include <unordered_set>

#include "core/check.h"
#include "lora/core/text.h"

static_assert(std::endian::native == std::endian::little, "GGUF files are little-endian");

namespace lora::formats {
namespace {

constexpr std::string_view kMagic = "GGUF";
constexpr uint32_t kOldestVersion = 2, kVersion = 3;
constexpr std::string_view kAlignmentKey = "general.alignment";
constexpr uint32_t kArray = 9, kString = 8;
constexpr size_t kMaxDimensions = 4, kMaxKeyBytes = 65'535;
/// ggml keeps names in 64 bytes, their NUL included.
constexpr size_t kMaxTensorNameBytes = 63;
constexpr size_t kMaxArrayDepth = 4;
constexpr uint64_t kMaxAlignment = 1u << 20;

constexpr std::string_view kValueTypes[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                            "bool", "string", "array", "u64", "i64", "f64"};

/// An element type: a row of it is made of blocks of so many elements and bytes.
struct GgmlType {
  uint32_t number;
  std::string_view name;
  int64_t block_elements, block_bytes;
};

constexpr GgmlType kGgmlTypes[] = {
    {0, "F32", 1, 4},         {1, "F16", 1, 2},       {2, "Q4_0", 32, 18},    {3, "Q4_1", 32, 20},      {6, "Q5_0", 32, 22},
    {7, "Q5_1", 32, 24},      {8, "Q8_0", 32, 34},    {10, "Q2_K", 256, 84},  {11, "Q3_K", 256, 110},   {12, "Q4_K", 256, 144},
    {13, "Q5_K", 256, 176},   {14, "Q6_K", 256, 210}, {15, "Q8_K", 256, 292}, {16, "IQ2_XXS", 256, 66}, {17, "IQ2_XS", 256, 74},
    {18, "IQ3_XXS", 256, 98}, {19, "IQ1_S", 256, 50}, {20, "IQ4_NL", 32, 18}, {21, "IQ3_S", 256, 110},  {22, "IQ2_S", 256, 82},
    {23, "IQ4_XS", 256, 136}, {24, "I8", 1, 1},       {25, "I16", 1, 2},      {26, "I32", 1, 4},        {27, "I64", 1, 8},
    {28, "F64", 1, 8},        {29, "IQ1_M", 256, 56}, {30, "BF16", 1, 2},     {34, "TQ1_0", 256, 54},   {35, "TQ2_0", 256, 66},
    {39, "MXFP4", 32, 17}};

const GgmlType* find_ggml_type(uint32_t number) {
  const auto found = std::ranges::find(kGgmlTypes, number, &GgmlType::number);
  return found == std::end(kGgmlTypes) ? nullptr : &*found;
}

bool is_alignment(uint64_t value) { return std::has_single_bit(value) && value >= 8 && value <= kMaxAlignment; }

/// Takes values from the front of the file; nothing is taken that the file does not have.
class Reader {
 public:
  Reader(std::span<const std::byte> file, std::string_view where, const GgufLimits& limits)
      : file_(file), where_(where), limits_(limits) {}

  uint64_t position() const { return position_; }

  template <class T>
  T number(std::string_view what) {
    T value;
    std::memcpy(&value, take(sizeof(T), what).data(), sizeof(T));
    return value;
  }

  std::string text(std::string_view what) {
    const auto length = number<uint64_t>(what);
    const auto bytes = take(length, what);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

  /// Text that names something.
  std::string name(std::string_view what, size_t max_bytes) {
    const uint64_t begin = position_;
    std::string found = text(what);
    const bool usable = !found.empty() && found.size() <= max_bytes && is_utf8(found) && found.find('\0') == std::string::npos;
    check(usable, begin, "{} must be UTF-8 of 1 to {} bytes without NUL; found {:?}", what, max_bytes, found.substr(0, 80));
    return found;
  }

  GgufValue value(uint32_t type, size_t depth = 0) {
    constexpr std::string_view kWhat = "a value";
    switch (type) {
      case 0:
        return {number<uint8_t>(kWhat)};
      case 1:
        return {number<int8_t>(kWhat)};
      case 2:
        return {number<uint16_t>(kWhat)};
      case 3:
        return {number<int16_t>(kWhat)};
      case 4:
        return {number<uint32_t>(kWhat)};
      case 5:
        return {number<int32_t>(kWhat)};
      case 6:
        return {number<float>(kWhat)};
      case 7:
        return {boolean()};
      case kString:
        return {text(kWhat)};
      case kArray:
        return {array(depth)};
      case 10:
        return {number<uint64_t>(kWhat)};
      case 11:
        return {number<int64_t>(kWhat)};
      case 12:
        return {number<double>(kWhat)};
      default:
        fail<FormatError>(
            "[{}] byte {}: a value must have a type from 0 to 12; found {}; the file "
            "is damaged or not GGUF",
            where_, position_ - 4, type);
    }
  }

  /// Counts something that takes memory here.
  void count_item() {
    check(++items_ <= limits_.max_items, position_,
          "there must be at most {} keys, tensors and "
          "items; found more",
          limits_.max_items);
  }

  template <class... Args>
  void check(bool holds, uint64_t byte, fmt::format_string<Args...> text, Args&&... args) const {
    if (holds) return;
    fail<FormatError>("[{}] byte {}: {}; the file is damaged or not GGUF", where_, byte,
                      detail::format_values(text, detail::as_utf8(args)...));
  }

 private:
  std::span<const std::byte> take(uint64_t size, std::string_view what) {
    check(size <= file_.size() - position_, position_, "{} must end inside the file of {} bytes; found one of {} bytes", what,
          file_.size(), size);
    check(size <= limits_.max_header_bytes - std::min(position_, limits_.max_header_bytes), position_,
          "the header must have at most {} bytes; found more", limits_.max_header_bytes);
    const auto bytes = file_.subspan(position_, size);
    position_ += size;
    return bytes;
  }

  bool boolean() {
    const auto found = number<uint8_t>("a value");
    check(found <= 1, position_ - 1, "a bool must be 0 or 1; found {}", found);
    return found == 1;
  }

  GgufArray array(size_t depth) {
    check(depth < kMaxArrayDepth, position_, "lists must be at most {} deep; found a deeper one", kMaxArrayDepth);
    GgufArray list{.item_type = number<uint32_t>("a list")};
    check(!gguf_type_name(list.item_type).empty(), position_ - 4, "the items of a list must have a type from 0 to 12; found {}",
          list.item_type);
    const auto length = number<uint64_t>("a list");
    // Every item takes a byte or more of the file.
    check(length <= file_.size() - position_, position_ - 8, "a list must end inside the file; found {} items", length);
    for (uint64_t i = 0; i < length; ++i) {
      count_item();
      list.items.push_back(value(list.item_type, depth + 1));
    }
    return list;
  }

  std::span<const std::byte> file_;
  std::string_view where_;
  GgufLimits limits_;
  uint64_t position_ = 0, items_ = 0;
};

uint32_t read_version(Reader& reader) {
  const auto version = reader.number<uint32_t>("the version");
  const bool is_swapped = version != 0 && (version & 0xFFFF) == 0;
  reader.check(!is_swapped, 4, "must be little-endian; found a big-endian file");
  reader.check(version >= kOldestVersion && version <= kVersion, 4, "the version must be {} or {}; found {}", kOldestVersion,
               kVersion, version);
  return version;
}

void read_metadata(Reader& reader, uint64_t count, GgufHeader& header) {
  std::unordered_set<std::string> seen;
  for (uint64_t i = 0; i < count; ++i) {
    reader.count_item();
    const uint64_t begin = reader.position();
    std::string key = reader.name("a key", kMaxKeyBytes);
    reader.check(seen.insert(key).second, begin, "keys must differ; found {:?} twice", key);
    const auto type = reader.number<uint32_t>("a key's type");
    header.metadata.emplace_back(std::move(key), reader.value(type));
  }
}

void read_alignment(const Reader& reader, GgufHeader& header) {
  const GgufValue* value = header.find(kAlignmentKey);
  if (value == nullptr) return;
  const auto* alignment = value->as<uint32_t>();
  reader.check(alignment != nullptr && is_alignment(*alignment), reader.position(),
               "{} must be a power of two from 8 to {}, as u32", kAlignmentKey, kMaxAlignment);
  header.alignment = *alignment;
}

std::vector<int64_t> read_shape(Reader& reader, std::string_view name) {
  const uint64_t begin = reader.position();
  const auto count = reader.number<uint32_t>("a tensor's dimensions");
  reader.check(count <= kMaxDimensions, begin,
               "the tensor {:?} must have at most {} dimensions; "
               "found {}",
               name, kMaxDimensions, count);
  std::vector<int64_t> shape;
  for (uint32_t i = 0; i < count; ++i) {
    const auto size = reader.number<uint64_t>("a tensor's dimensions");
    reader.check(size <= INT64_MAX, begin, "the tensor {:?} must have sizes below 2^63; found {}", name, size);
    shape.push_back(static_cast<int64_t>(size));
  }
  std::ranges::reverse(shape);
  return shape;
}

void read_tensors(Reader& reader, uint64_t count, GgufHeader& header) {
  std::unordered_set<std::string> seen;
  uint64_t next = 0;  // where the data of the tensor at hand must begin
  for (uint64_t i = 0; i < count; ++i) {
    reader.count_item();
    const uint64_t begin = reader.position();
    GgufTensor tensor{.name = reader.name("a tensor's name", kMaxTensorNameBytes)};
    reader.check(seen.insert(tensor.name).second, begin, "names must differ; found {:?} twice", tensor.name);
    tensor.shape = read_shape(reader, tensor.name);
    tensor.type = reader.number<uint32_t>("a tensor's type");
    reader.check(find_ggml_type(tensor.type) != nullptr, reader.position() - 4,
                 "the tensor {:?} must have a type that is known; found number {}", tensor.name, tensor.type);
    const auto bytes = ggml_tensor_bytes(tensor.type, tensor.shape);
    reader.check(bytes.has_value(), begin,
                 "the tensor {:?} must have whole blocks and a size "
                 "below 2^63; found {} {}",
                 tensor.name, ggml_type_name(tensor.type), tensor.shape);
    tensor.bytes = *bytes;
    tensor.offset = reader.number<uint64_t>("a tensor's offset");
    reader.check(tensor.offset == next, reader.position() - 8,
                 "the tensor {:?} must begin at byte {} of the data, where the one before it ends; "
                 "found {}",
                 tensor.name, next, tensor.offset);
    const bool fits = !__builtin_add_overflow(next, tensor.bytes, &next) &&
                      !__builtin_add_overflow(next, gguf_padding(next, header.alignment), &next);
    reader.check(fits, begin, "the data must have a size below 2^64; found more at {:?}", tensor.name);
    header.tensors.push_back(std::move(tensor));
  }
}

/// The last tensor's padding may be missing.
void check_end(const Reader& reader, const GgufHeader& header, uint64_t file_size) {
  if (header.tensors.empty()) {
    reader.check(file_size <= header.data_start, reader.position(),
                 "a file without tensors must end with its header; found {} bytes", file_size);
    return;
  }
  const GgufTensor& last = header.tensors.back();
  const uint64_t room = file_size - std::min(file_size, header.data_start);
  const uint64_t end = last.offset + last.bytes;
  reader.check(room >= end && room - end <= gguf_padding(end, header.alignment), file_size,
               "the file must end with its last tensor, {} bytes of data; found {}", end, room);
}

void append(std::string& out, const void* data, size_t size) { out.append(static_cast<const char*>(data), size); }

template <class T>
void append_number(std::string& out, T value) {
  append(out, &value, sizeof value);
}

void append_text(std::string& out, std::string_view text) {
  append_number<uint64_t>(out, text.size());
  out += text;
}

void append_value(std::string& out, const GgufValue& value) {
  std::visit(
      [&](const auto& item) {
        using T = std::decay_t<decltype(item)>;
        if constexpr (std::is_same_v<T, std::string>) {
          append_text(out, item);
        } else if constexpr (std::is_same_v<T, GgufArray>) {
          append_number(out, item.item_type);
          append_number<uint64_t>(out, item.items.size());
          for (const GgufValue& inner : item.items) {
            require<FormatError>(inner.value.index() == item.item_type,
                                 "[gguf] the items of a list must have one type; found {} among "
                                 "{}; correct the value",
                                 gguf_type_name(static_cast<uint32_t>(inner.value.index())), gguf_type_name(item.item_type));
            append_value(out, inner);
          }
        } else {
          append_number(out, item);
        }
      },
      value.value);
}

void require_writable(std::string_view name, size_t max_bytes, std::unordered_set<std::string_view>& seen) {
  const bool usable = !name.empty() && name.size() <= max_bytes && is_utf8(name) && name.find('\0') == std::string_view::npos;
  require<FormatError>(usable && seen.insert(name).second,
                       "[gguf] keys and names must differ and be UTF-8 of 1 to {} bytes without "
                       "NUL; found {:?}; rename it",
                       max_bytes, name);
}

void lay_out(GgufHeader& header) {
  uint64_t next = 0;
  std::unordered_set<std::string_view> seen;
  for (GgufTensor& tensor : header.tensors) {
    require_writable(tensor.name, kMaxTensorNameBytes, seen);
    const auto bytes = ggml_tensor_bytes(tensor.type, tensor.shape);
    require<FormatError>(bytes && tensor.shape.size() <= kMaxDimensions,
                         "[gguf] the tensor {:?} must have at most {} dimensions and a size in "
                         "whole blocks; found {} {}; it cannot be written",
                         tensor.name, kMaxDimensions, ggml_type_name(tensor.type), tensor.shape);
    tensor.bytes = *bytes;
    tensor.offset = next;
    next += tensor.bytes + gguf_padding(tensor.bytes, header.alignment);
  }
}

}  // namespace

std::string_view gguf_type_name(uint32_t type) { return type < std::size(kValueTypes) ? kValueTypes[type] : std::string_view(); }

std::string_view ggml_type_name(uint32_t type) {
  const GgmlType* found = find_ggml_type(type);
  return found == nullptr ? std::string_view() : found->name;
}

std::optional<uint32_t> ggml_type_of(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return 0;
    case DType::kF16:
      return 1;
    case DType::kBF16:
      return 30;
    default:
      return std::nullopt;
  }
}

std::optional<uint64_t> ggml_tensor_bytes(uint32_t type, std::span<const int64_t> shape) {
  const GgmlType* found = find_ggml_type(type);
  if (found == nullptr) return std::nullopt;
  const int64_t row = shape.empty() ? 1 : shape.back();
  if (row < 0 || row % found->block_elements != 0) return std::nullopt;
  int64_t bytes = 0;
  if (__builtin_mul_overflow(row / found->block_elements, found->block_bytes, &bytes)) {
    return std::nullopt;
  }
  for (size_t i = 0; i + 1 < shape.size(); ++i) {
    if (shape[i] < 0 || __builtin_mul_overflow(bytes, shape[i], &bytes)) return std::nullopt;
  }
  return static_cast<uint64_t>(bytes);
}

uint64_t gguf_padding(uint64_t bytes, uint64_t alignment) { return (alignment - bytes % alignment) % alignment; }

const GgufValue* GgufHeader::find(std::string_view key) const {
  const auto found = std::ranges::find_if(metadata, [&](const auto& entry) { return entry.first == key; });
  return found == metadata.end() ? nullptr : &found->second;
}

GgufHeader parse_gguf(std::span<const std::byte> file, std::string_view where, const GgufLimits& limits) {
  Reader reader(file, where, limits);
  std::string magic(kMagic.size(), '\0');
  for (char& letter : magic) letter = reader.number<char>("the magic");
  reader.check(magic == kMagic, 0, "must begin with {:?}; found {:?}", kMagic, magic);
  GgufHeader header;
  header.version = read_version(reader);
  const auto num_tensors = reader.number<uint64_t>("the number of tensors");
  const auto num_keys = reader.number<uint64_t>("the number of keys");
  read_metadata(reader, num_keys, header);
  read_alignment(reader, header);
  read_tensors(reader, num_tensors, header);
  header.data_start = reader.position() + gguf_padding(reader.position(), header.alignment);
  check_end(reader, header, file.size());
  return header;
}

std::string write_gguf_header(GgufHeader& header) {
  require<FormatError>(is_alignment(header.alignment),
                       "[gguf] the alignment must be a power of two from 8 to {}; found {}; use 32", kMaxAlignment,
                       header.alignment);
  lay_out(header);
  std::string out(kMagic);
  append_number(out, kVersion);
  append_number<uint64_t>(out, header.tensors.size());
  append_number<uint64_t>(out, header.metadata.size());
  std::unordered_set<std::string_view> seen;
  for (const auto& [key, value] : header.metadata) {
    require_writable(key, kMaxKeyBytes, seen);
    append_text(out, key);
    append_number(out, static_cast<uint32_t>(value.value.index()));
    append_value(out, value);
  }
  for (const GgufTensor& tensor : header.tensors) {
    append_text(out, tensor.name);
    append_number(out, static_cast<uint32_t>(tensor.shape.size()));
    for (size_t i = tensor.shape.size(); i-- > 0;) {
      append_number(out, static_cast<uint64_t>(tensor.shape[i]));
    }
    append_number(out, tensor.type);
    append_number(out, tensor.offset);
  }
  out.append(gguf_padding(out.size(), header.alignment), '\0');
  header.version = kVersion;
  header.data_start = out.size();
  return out;
}

}  // namespace lora::formats
