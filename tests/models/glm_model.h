// Tiny ChatGLMs and rows for them.
#pragma once

#include <ATen/ATen.h>
#include <torch/utils.h>

#include <memory>
#include <utility>
#include <vector>

#include "lora/data/collate.h"
#include "lora/data/example.h"
#include "lora/models/glm.h"
#include "lora/ops/device.h"

namespace lora::testing {

using GlmImpl = glm::ChatGlmForConditionalGenerationImpl;

/// Special tokens at the end of a vocabulary of 50: [MASK] 44, [gMASK] 45, <sop> 48, <eop> 49.
constexpr int64_t kMask = 44, kGmask = 45, kSop = 48, kEop = 49, kPad = 3;

inline glm::GlmConfig tiny_glm_config(std::vector<std::pair<std::string, std::string>> more = {}) {
  std::vector<std::pair<std::string, std::string>> fields = {{"vocab_size", "50"},         {"hidden_size", "32"},
                                                             {"inner_hidden_size", "48"},  {"num_layers", "2"},
                                                             {"num_attention_heads", "4"}, {"max_sequence_length", "256"},
                                                             {"initializer_range", "0.2"}, {"rope_inv_freq_dtype", "float32"}};
  fields.insert(fields.end(), more.begin(), more.end());
  return glm::fresh_glm_config(std::nullopt, fields);
}

/// Biases and norms are drawn, too, so that nothing is neutral.
inline std::shared_ptr<GlmImpl> tiny_glm(uint64_t seed = 11, std::vector<std::pair<std::string, std::string>> more = {}) {
  seed_generators(seed);
  auto model = std::make_shared<GlmImpl>(tiny_glm_config(std::move(more)));
  const torch::NoGradGuard no_grad;
  for (const auto& entry : model->named_parameters()) {
    if (entry.key().ends_with(".bias")) entry.value().normal_(0, 0.2);
    if (entry.key().ends_with("norm.weight")) entry.value().normal_(1, 0.2);
  }
  return model;
}

/// A prompt of `context` - 1 tokens and [gMASK], <sop>, an answer of `answer` tokens, the last of them <eop>.
inline std::vector<int64_t> glm_ids(int64_t context, int64_t answer) {
  const auto random = at::randint(4, 44, {context - 1 + answer}, at::kLong);
  const int64_t* ids = random.data_ptr<int64_t>();
  std::vector<int64_t> row(ids, ids + context - 1);
  row.insert(row.end(), {kGmask, kSop});
  row.insert(row.end(), ids + context - 1, ids + context - 1 + answer);
  row.back() = kEop;
  return row;
}

inline data::Example glm_example(int64_t context, int64_t answer) {
  data::Example example;
  for (const int64_t id : glm_ids(context, answer)) example.input_ids.push_back(static_cast<int32_t>(id));
  example.labels = example.input_ids;
  std::fill_n(example.labels.begin(), context + 1, static_cast<int32_t>(kIgnoreLabel));
  return example;
}

inline std::vector<const data::Example*> pointers_to(const std::vector<data::Example>& rows) {
  std::vector<const data::Example*> pointers;
  for (const auto& row : rows) pointers.push_back(&row);
  return pointers;
}

inline Batch glm_batch(const std::vector<int64_t>& ids) {
  Batch batch;
  batch.input_ids_BS = at::tensor(ids, at::kLong).unsqueeze(0);
  return batch;
}

}  // namespace lora::testing
