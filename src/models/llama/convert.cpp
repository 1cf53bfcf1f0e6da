#include "lora/models/llama/convert.h"

#include <ATen/ATen.h>

#include <fstream>
#include <span>

#include "core/check.h"
#include "formats/json.h"
#include "lora/core/file.h"
#include "lora/formats/llama2c.h"
#include "lora/io/dtype.h"
#include "lora/io/model_files.h"
#include "lora/io/quantized.h"
#include "lora/ops/quantized.h"

namespace lora::llama {
namespace {

constexpr size_t kLlama2cHeader = 256;

/// Reads one fp32 tensor of a raw file.
Tensor read_raw(const Path& file, const formats::Llama2cFile::Tensor& entry) {
  Tensor tensor = at::empty(entry.shape, at::kFloat);
  std::ifstream stream(file, std::ios::binary);
  stream.seekg(static_cast<std::streamoff>(entry.offset));
  stream.read(static_cast<char*>(tensor.data_ptr()), static_cast<std::streamsize>(tensor.nbytes()));
  require<IoError>(stream.good(), "[convert] {} must be readable to its end; reading {} failed", file.string(),
                   entry.name);
  return tensor;
}

/// The beginning of a file, as much as a header can take.
std::string read_head(const Path& file) {
  std::ifstream stream(file, std::ios::binary);
  require<IoError>(stream.is_open(), "[convert] the checkpoint must be a readable file; found none at {}", file.string());
  std::string head(kLlama2cHeader, '\0');
  stream.read(head.data(), static_cast<std::streamsize>(head.size()));
  head.resize(static_cast<size_t>(stream.gcount()));
  return head;
}

LlamaConfig config_of(const formats::Llama2cFile& parsed, const Path& file, const SaveOptions& options) {
  LlamaConfig config;
  config.vocab_size = parsed.vocab_size;
  config.hidden_size = parsed.hidden_size;
  config.intermediate_size = parsed.intermediate_size;
  config.num_hidden_layers = parsed.num_layers;
  config.num_attention_heads = parsed.num_heads;
  config.num_key_value_heads = parsed.num_kv_heads;
  config.head_dim = parsed.hidden_size / parsed.num_heads;
  config.max_position_embeddings = parsed.max_positions;
  config.tie_word_embeddings = parsed.tied_head;
  config.dtype = options.dtype.value_or(DType::kF32);
  check_llama_config(config, file.string());
  return config;
}

/// Finishes a converted directory: the files beside the weights.
void write_config(const LlamaConfig& config, const Path& directory, const SaveOptions& options) {
  write_file_atomically(directory / "config.json", write_llama_config(config));
  if (options.copy_tokenizer_from) copy_tokenizer_files(*options.copy_tokenizer_from, directory);
}

}  // namespace

Tensor meta_to_hf_rotary(const Tensor& weight, int64_t heads) {
  const int64_t rows = weight.size(0), in = weight.size(1);
  return weight.view({heads, rows / heads / 2, 2, in}).transpose(1, 2).reshape({rows, in});
}

bool is_llama2c(const Path& file) {
  const std::string head = read_head(file);
  return formats::looks_like_llama2c(std::as_bytes(std::span(head)), std::filesystem::file_size(file));
}

formats::Llama2cFile read_llama2c(const Path& file) {
  const std::string head = read_head(file);
  return formats::parse_llama2c(std::as_bytes(std::span(head)), std::filesystem::file_size(file), file.string());
}

LlamaConfig llama2c_config(const Path& file, const SaveOptions& options) {
  return config_of(read_llama2c(file), file, options);
}

LlamaConfig convert_llama2c(const Path& file, const Path& directory, const SaveOptions& options) {
  const auto parsed = read_llama2c(file);
  const LlamaConfig config = config_of(parsed, file, options);
  std::vector<io::TensorSource> tensors;
  for (const auto& entry : parsed.tensors) {
    const int64_t rotary_heads = entry.name.ends_with("q_proj.weight")   ? config.num_attention_heads
                                 : entry.name.ends_with("k_proj.weight") ? config.num_key_value_heads
                                                                         : 0;
    tensors.push_back({entry.name, config.dtype, entry.shape, [file, entry, rotary_heads] {
                         const Tensor tensor = read_raw(file, entry);
                         return rotary_heads > 0 ? meta_to_hf_rotary(tensor, rotary_heads) : tensor;
                       }});
  }
  io::save_model_files(directory, tensors, options.shard_bytes);
  write_config(config, directory, options);
  return config;
}

LlamaConfig convert_hf(const Path& from, const Path& directory, const SaveOptions& options) {
  LlamaConfig config = read_llama_config(from);
  config.dtype = options.dtype.value_or(config.dtype);
  config.quantization = std::nullopt;  // what was in few bits is written as the numbers that it stands for
  const io::ModelFiles files(from);
  std::vector<io::TensorSource> tensors;
  for (const auto& [name, shape] : llama_weight_shapes(config)) {
    const bool is_there = files.contains(name);
    const auto stored = is_there ? io::stored_weight(files, name) : io::StoredWeight{};
    require<ShapeError>(is_there && stored.shape == shape, "[convert] {} must hold {} with shape [{}], as its config.json says",
                        from.string(), name, fmt::join(shape, ", "));
    const auto dtype = io::to_torch(config.dtype, "config.json");
    tensors.push_back({name, config.dtype, shape, [&files, name = name, dtype, in_few_bits = stored.scheme.has_value()] {
                         return in_few_bits ? ops::QuantizedTensor(io::read_quantized(files, name)).dequantize(dtype) : files.read(name);
                       }});
  }
  io::save_model_files(directory, tensors, options.shard_bytes);
  write_config(config, directory, options);
  return config;
}

}  // namespace lora::llama
