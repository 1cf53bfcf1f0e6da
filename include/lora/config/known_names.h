#pragma once

#include <string>
#include <vector>

namespace lora::config {

/// Names that a run file may use and that programs can add to.
struct KnownNames {
  std::vector<std::string> architectures = {"llama", "glm"};  ///< of model.arch
  /// Keys of `model` that an architecture may let a loaded model change.
  std::vector<std::string> loaded_fields = {"rope_inv_freq_dtype", "residual_alpha_layers", "tie_word_embeddings"};
  std::vector<std::string> metrics = {"rouge", "bleu4", "exact_match"};  ///< of eval.metrics
  std::vector<std::string> formats = {"adgen",      "alpaca", "chat",   "sharegpt",
                                      "completion", "text",   "tokens", "records"};  ///< of data.format
  std::vector<std::string> callbacks = {};                                           ///< of train.callbacks
};

/// Of this process; to be added to before the first run file is read.
KnownNames& known_names();

}  // namespace lora::config
