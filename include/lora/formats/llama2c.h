#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lora::formats {

/// A checkpoint of llama2.c in fp32, either layout (legacy, or version 1 with magic "ak42"): sizes
/// and where each tensor lies. Source: llama2.c export.py and run.c.
struct Llama2cFile {
  int64_t hidden_size = 0, intermediate_size = 0, num_layers = 0, num_heads = 0, num_kv_heads = 0;
  int64_t vocab_size = 0, max_positions = 0;
  bool tied_head = true;
  int version = 0;  ///< 0 = legacy

  struct Tensor {
    std::string name;  ///< Hugging Face name; q_proj and k_proj rows are still in Meta's rotary order
    std::vector<int64_t> shape;
    uint64_t offset = 0;  ///< bytes from the start of the file; fp32, little-endian
  };
  std::vector<Tensor> tensors = {};  ///< in the order of the file
};

/// True when the file's beginning can be a llama2.c checkpoint: it has the magic, or the sizes of a
/// legacy header account for every byte of the file. `head`: the first 256 bytes, or all.
bool looks_like_llama2c(std::span<const std::byte> head, uint64_t file_size);

/// Reads the header (the first 256 bytes are enough) and checks it against the size of the file.
/// Every tensor found lies inside the file. Throws FormatError; `where` opens the message.
Llama2cFile parse_llama2c(std::span<const std::byte> head, uint64_t file_size, std::string_view where);

}  // namespace lora::formats
