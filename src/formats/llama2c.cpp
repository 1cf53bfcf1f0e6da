#include "lora/formats/llama2c.h"

#include <utility>

#include "core/check.h"
#include "formats/tensor_bytes.h"

namespace lora::formats {
namespace {

constexpr uint32_t kMagic = 0x616b3432;  // "ak42"
constexpr uint64_t kLegacyHeaderBytes = 7 * 4;
constexpr uint64_t kVersion1HeaderBytes = 256;
constexpr uint64_t kVersion1UsedBytes = 9 * 4 + 1;
/// More than any model has; keeps a lying header from making a long list.
constexpr int64_t kMaxLayers = 10'000;

uint32_t read_word(std::span<const std::byte> head, size_t offset) {
  uint32_t word = 0;
  for (size_t i = 0; i < 4; ++i) word |= std::to_integer<uint32_t>(head[offset + i]) << (8 * i);
  return word;
}

int32_t read_int(std::span<const std::byte> head, size_t offset) { return static_cast<int32_t>(read_word(head, offset)); }

bool has_magic(std::span<const std::byte> head) { return head.size() >= 4 && read_word(head, 0) == kMagic; }

/// Walks over the data in file order, noting the tensors. Offsets that overflow stay overflowed.
class Layout {
 public:
  Layout(Llama2cFile& file, uint64_t header_bytes) : file_(file), position_(header_bytes) {}

  void add(std::string name, std::vector<int64_t> shape) {
    const uint64_t begin = position_;
    skip(shape);
    file_.tensors.push_back({std::move(name), std::move(shape), begin});
  }

  void add_per_layer(std::string_view name, const std::vector<int64_t>& shape) {
    for (int64_t layer = 0; layer < file_.num_layers; ++layer) {
      add(fmt::format("model.layers.{}.{}.weight", layer, name), shape);
    }
  }

  void skip(const std::vector<int64_t>& shape) {
    const auto bytes = tensor_bytes(DType::kF32, shape);
    overflowed_ |= !bytes || __builtin_add_overflow(position_, *bytes, &position_);
  }

  bool ends_at(uint64_t file_size) const { return !overflowed_ && position_ == file_size; }
  /// Where the data end, for messages.
  std::string end() const { return overflowed_ ? "over 2^63" : fmt::format("{}", position_); }

 private:
  Llama2cFile& file_;
  uint64_t position_;
  bool overflowed_ = false;
};

void read_sizes(Llama2cFile& file, std::span<const std::byte> words) {
  int64_t* const fields[] = {&file.hidden_size,  &file.intermediate_size, &file.num_layers,   &file.num_heads,
                             &file.num_kv_heads, &file.vocab_size,        &file.max_positions};
  size_t offset = 0;
  for (int64_t* field : fields) {
    *field = read_int(words, offset);
    offset += 4;
  }
}

/// The header without a look at the data.
Llama2cFile read_header(std::span<const std::byte> head, std::string_view where) {
  Llama2cFile file;
  const bool legacy = !has_magic(head);
  const uint64_t needed = legacy ? kLegacyHeaderBytes : kVersion1UsedBytes;
  require<FormatError>(head.size() >= needed, "[{}] a llama2.c header must have {} bytes; found {}; the file is truncated", where,
                       needed, head.size());
  if (legacy) {
    read_sizes(file, head);
    // A negative vocabulary size is the sign of an output head of its own.
    file.tied_head = file.vocab_size > 0;
    if (!file.tied_head) file.vocab_size = -file.vocab_size;
  } else {
    file.version = read_int(head, 4);
    require<FormatError>(file.version == 1,
                         "[{}] must be a legacy or version 1 file of llama2.c; found version {} "
                         "(version 2 holds 8-bit weights); export it again as version 1",
                         where, file.version);
    read_sizes(file, head.subspan(8));
    file.tied_head = std::to_integer<int>(head[kVersion1UsedBytes - 1]) != 0;
  }
  return file;
}

void check_sizes(const Llama2cFile& file, std::string_view where) {
  const bool positive = file.hidden_size > 0 && file.intermediate_size > 0 && file.num_layers > 0 && file.num_heads > 0 &&
                        file.num_kv_heads > 0 && file.vocab_size > 0 && file.max_positions > 0;
  const bool consistent = positive && file.num_layers <= kMaxLayers && file.hidden_size % (2 * file.num_heads) == 0 &&
                          file.num_heads % file.num_kv_heads == 0;
  require<FormatError>(consistent,
                       "[{}] a llama2.c header must have positive sizes, heads that divide hidden "
                       "and kv heads that divide heads; found hidden {}, intermediate {}, layers "
                       "{}, heads {}, kv heads {}, vocabulary {}, positions {}; the file is "
                       "damaged or not from llama2.c",
                       where, file.hidden_size, file.intermediate_size, file.num_layers, file.num_heads, file.num_kv_heads,
                       file.vocab_size, file.max_positions);
}

void add_attention(Layout& layout, const Llama2cFile& file) {
  const int64_t hidden = file.hidden_size;
  const int64_t kv_size = hidden / file.num_heads * file.num_kv_heads;
  layout.add_per_layer("self_attn.q_proj", {hidden, hidden});
  layout.add_per_layer("self_attn.k_proj", {kv_size, hidden});
  layout.add_per_layer("self_attn.v_proj", {kv_size, hidden});
  layout.add_per_layer("self_attn.o_proj", {hidden, hidden});
}

void add_feed_forward(Layout& layout, const Llama2cFile& file) {
  layout.add_per_layer("mlp.gate_proj", {file.intermediate_size, file.hidden_size});
  layout.add_per_layer("mlp.down_proj", {file.hidden_size, file.intermediate_size});
  layout.add_per_layer("mlp.up_proj", {file.intermediate_size, file.hidden_size});
}

Layout lay_out_legacy(Llama2cFile& file) {
  const int64_t hidden = file.hidden_size;
  Layout layout(file, kLegacyHeaderBytes);
  layout.add("model.embed_tokens.weight", {file.vocab_size, hidden});
  layout.add_per_layer("input_layernorm", {hidden});
  add_attention(layout, file);
  layout.add_per_layer("post_attention_layernorm", {hidden});
  add_feed_forward(layout, file);
  layout.add("model.norm.weight", {hidden});
  // Tables of the rotary cosines and sines.
  layout.skip({2, file.max_positions, hidden / file.num_heads / 2});
  if (!file.tied_head) layout.add("lm_head.weight", {file.vocab_size, hidden});
  return layout;
}

Layout lay_out_version1(Llama2cFile& file) {
  const int64_t hidden = file.hidden_size;
  Layout layout(file, kVersion1HeaderBytes);
  layout.add_per_layer("input_layernorm", {hidden});
  layout.add_per_layer("post_attention_layernorm", {hidden});
  layout.add("model.norm.weight", {hidden});
  layout.add("model.embed_tokens.weight", {file.vocab_size, hidden});
  add_attention(layout, file);
  add_feed_forward(layout, file);
  if (!file.tied_head) layout.add("lm_head.weight", {file.vocab_size, hidden});
  return layout;
}

}  // namespace

bool looks_like_llama2c(std::span<const std::byte> head, uint64_t file_size) {
  if (has_magic(head)) return true;
  try {
    parse_llama2c(head, file_size, "");
    return true;
  } catch (const FormatError&) {
    return false;
  }
}

Llama2cFile parse_llama2c(std::span<const std::byte> head, uint64_t file_size, std::string_view where) {
  Llama2cFile file = read_header(head, where);
  check_sizes(file, where);
  const Layout layout = file.version == 0 ? lay_out_legacy(file) : lay_out_version1(file);
  require<FormatError>(layout.ends_at(file_size),
                       "[{}] the sizes in the llama2.c header need a file of {} bytes; found {}; "
                       "the file is truncated, damaged or not from llama2.c",
                       where, layout.end(), file_size);
  return file;
}

}  // namespace lora::formats
