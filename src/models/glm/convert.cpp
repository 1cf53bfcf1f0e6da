#include "lora/models/glm/convert.h"

#include "core/check.h"
#include "lora/core/file.h"
#include "lora/io/dtype.h"
#include "lora/io/model_files.h"
#include "lora/io/quantized.h"
#include "lora/ops/quantized.h"

namespace lora::glm {
namespace {

io::TensorSource source_of(const io::ModelFiles& files, const nn::WeightShape& wanted, DType dtype) {
  const bool is_there = files.contains(wanted.name);
  const auto stored = is_there ? io::stored_weight(files, wanted.name) : io::StoredWeight{};
  require<ShapeError>(is_there && stored.shape == wanted.shape, "[convert] {} must hold {} with shape [{}], as its config.json says",
                      files.directory().string(), wanted.name, fmt::join(wanted.shape, ", "));
  const auto type = io::to_torch(dtype, "config.json");
  return {wanted.name, dtype, wanted.shape, [&files, name = wanted.name, type, in_few_bits = stored.scheme.has_value()] {
            return in_few_bits ? ops::QuantizedTensor(io::read_quantized(files, name)).dequantize(type) : files.read(name);
          }};
}

}  // namespace

GlmConfig convert_hf(const Path& from, const Path& directory, const SaveOptions& options) {
  GlmConfig config = read_glm_config(from);
  config.dtype = options.dtype.value_or(config.dtype);
  config.quantization = std::nullopt;  // what was in few bits is written as the numbers that it stands for
  const io::ModelFiles files(from);
  std::vector<io::TensorSource> tensors;
  for (const auto& weight : glm_weight_shapes(config)) {
    tensors.push_back(source_of(files, weight, weight.wide ? DType::kF32 : config.dtype));
  }
  io::save_model_files(directory, tensors, options.shard_bytes);
  write_file_atomically(directory / "config.json", write_glm_config(config));
  if (options.copy_tokenizer_from) nn::copy_tokenizer_files(*options.copy_tokenizer_from, directory, data::kGlmTokenizerFile);
  return config;
}

}  // namespace lora::glm
