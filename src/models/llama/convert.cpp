#include "lora/models/llama/convert.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <fstream>
#include <span>
#include <utility>

#include "core/check.h"
#include "formats/json.h"
#include "lora/core/file.h"
#include "lora/core/random.h"
#include "lora/formats/added_tokens.h"
#include "lora/formats/llama2c.h"
#include "lora/io/dtype.h"
#include "lora/io/model_files.h"
#include "models/llama/layout.h"

namespace lora::llama {
namespace {

constexpr size_t kLlama2cHeader = 256;

/// Reads one fp32 tensor of a raw file.
Tensor read_raw(const Path& file, const formats::Llama2cFile::Tensor& entry) {
  Tensor tensor = at::empty(entry.shape, at::kFloat);
  std::ifstream stream(file, std::ios::binary);
  stream.seekg(static_cast<std::streamoff>(entry.offset));
  stream.read(static_cast<char*>(tensor.data_ptr()), static_cast<std::streamsize>(tensor.nbytes()));
  require<IoError>(stream.good(), "[convert] {} must be readable to its end; reading {} failed", file.string(), entry.name);
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

constexpr std::string_view kEmbedding = "model.embed_tokens.weight", kHead = "lm_head.weight";

bool is_table(std::string_view name) { return name == kEmbedding || name == kHead; }

/// A directory's weights in the wanted type, and what the copy's config.json says as long as no table grows.
struct Copy {
  LlamaConfig config;
  nn::ModelWeights weights;
};

Copy copy_of(const Path& from, const SaveOptions& options) {
  LlamaConfig config = read_stored_config(from);
  config.dtype = options.dtype.value_or(config.dtype);
  nn::ModelWeights weights(from, layout_of(config), {.dtype = io::to_torch(config.dtype, "config.json")});
  config.quantization = std::nullopt;  // what was in few bits is written as the numbers that it stands for
  return {config, std::move(weights)};
}

/// Drawn row by row, each from a seed of its own.
void fill_random(const Tensor& rows_ND, double deviation, uint64_t seed) {
  for (int64_t i = 0; i < rows_ND.size(0); ++i) {
    rows_ND[i].normal_(0, deviation, at::detail::createCPUGenerator(mix_seed({seed, static_cast<uint64_t>(i)})));
  }
}

void fill_means(const Tensor& rows_ND, const Tensor& old_VD, const data::ExtendedTokenizer& tokenizer) {
  for (size_t i = 0; i < tokenizer.old_pieces.size(); ++i) {
    require<DataError>(!tokenizer.old_pieces[i].empty(),
                       "[new rows] a token must have old pieces whose mean it starts as; {:?} has none; "
                       "use random rows",
                       tokenizer.tokens[i]);
    rows_ND[static_cast<int64_t>(i)].copy_(
        old_VD.index_select(0, at::tensor(tokenizer.old_pieces[i], at::kLong)).to(at::kFloat).mean(0));
  }
}

/// The table in `dtype` with rows for the new tokens in the places of their ids, rounded once.
Tensor grown_table(const Tensor& old_VD, int64_t num_rows, at::ScalarType dtype, const VocabularyGrowth& growth, uint64_t seed) {
  const int64_t first = growth.tokenizer.first_id, end = growth.tokenizer.vocab_size();
  const Tensor used_VD = old_VD.slice(0, 0, first);
  const Tensor new_ND = at::empty({end - first, old_VD.size(1)}, at::kFloat);
  if (growth.new_rows == "mean") {
    fill_means(new_ND, used_VD, growth.tokenizer);
  } else {
    fill_random(new_ND, used_VD.to(at::kFloat).std().item<double>(), seed);
  }
  const Tensor grown_VD = at::empty({num_rows, old_VD.size(1)}, dtype);
  grown_VD.slice(0, 0, old_VD.size(0)).copy_(old_VD);
  if (num_rows > old_VD.size(0)) grown_VD.slice(0, old_VD.size(0)).copy_(used_VD.to(at::kFloat).mean(0));
  grown_VD.slice(0, first, end).copy_(new_ND);
  return grown_VD;
}

/// tokenizer.model anew, and the tokens in what transformers keeps beside it (the copies of which are in the directory).
void write_tokenizer(const data::ExtendedTokenizer& tokenizer, const Path& directory) {
  const formats::AddedTokens tokens{tokenizer.first_id, tokenizer.tokens};
  const auto change = [&](const char* name, auto add) {
    const Path file = directory / name;
    if (std::filesystem::exists(file)) write_file_atomically(file, add(read_file(file), tokens, name));
  };
  change("tokenizer.json", formats::add_to_tokenizer_json);
  change("added_tokens.json", formats::add_to_added_tokens_json);
  change("tokenizer_config.json", formats::add_to_tokenizer_config);
  write_file_atomically(directory / "tokenizer.model", tokenizer.model);
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

LlamaConfig llama2c_config(const Path& file, const SaveOptions& options) { return config_of(read_llama2c(file), file, options); }

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
  const auto [config, weights] = copy_of(from, options);
  io::save_model_files(directory, weights.sources(), options.shard_bytes);
  write_config(config, directory, options);
  return config;
}

int64_t grown_vocabulary(const LlamaConfig& config, const VocabularyGrowth& growth) {
  require<ConfigError>(growth.new_rows == "mean" || growth.new_rows == "random",
                       "[new rows] new rows must be mean or random; found {}", growth.new_rows);
  require<ConfigError>(growth.multiple >= 1 && growth.multiple <= 1 << 20,
                       "[new rows] the number of rows must be made a multiple of "
                       "1 to {}; found {}",
                       1 << 20, growth.multiple);
  require<ShapeError>(
      growth.tokenizer.first_id <= config.vocab_size,
      "[new rows] the model must have a row for every piece of the tokenizer; found {} rows and {} pieces; use the "
      "model's own tokenizer",
      config.vocab_size, growth.tokenizer.first_id);
  const int64_t needed = growth.tokenizer.vocab_size();
  if (needed <= config.vocab_size) return config.vocab_size;
  return (needed + growth.multiple - 1) / growth.multiple * growth.multiple;
}

LlamaConfig convert_hf_with_tokens(const Path& from, const Path& directory, const VocabularyGrowth& growth,
                                   const SaveOptions& options) {
  auto [config, weights] = copy_of(from, options);
  config.vocab_size = grown_vocabulary(config, growth);
  check_llama_config(config, "new tokens");
  auto tensors = weights.sources();
  for (auto& tensor : tensors) {
    if (!is_table(tensor.name)) continue;
    tensor.shape.front() = config.vocab_size;
    const uint64_t seed = mix_seed({growth.seed, tensor.name == kHead});
    const auto dtype = io::to_torch(config.dtype, "config.json");
    tensor.read = [read = tensor.read, rows = tensor.shape.front(), dtype, &growth, seed] {
      return grown_table(read(), rows, dtype, growth, seed);
    };
  }
  io::save_model_files(directory, tensors, options.shard_bytes);
  write_config(config, directory, options);
  write_tokenizer(growth.tokenizer, directory);
  return config;
}

}  // namespace lora::llama
