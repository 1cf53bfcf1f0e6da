#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace lora::formats {

/// Names in PEFT's two forms: a list, or one string (a regular expression).
using AdapterNames = std::variant<std::vector<std::string>, std::string>;

/// PEFT's trainable_token_indices: ids of the input embedding, or ids by module, in file order.
using TokenIndices = std::variant<std::vector<int64_t>, std::vector<std::pair<std::string, std::vector<int64_t>>>>;

/// `adapter_config.json` of PEFT with peft_type LORA, in PEFT's words and with PEFT's defaults.
/// Source: PEFT 0.21.2 tuners/lora/config.py.
struct PeftLoraConfig {
  using Names = AdapterNames;
  using Patterns = std::vector<std::pair<std::string, int64_t>>;
  using AlphaPatterns = std::vector<std::pair<std::string, double>>;  // EVA's alphas are fractions
  struct Loftq {
    int64_t bits = 4, iter = 1;
    bool operator==(const Loftq&) const = default;
  };

  std::optional<std::string> base_model_name_or_path = {}, task_type = {}, revision = {};
  int64_t r = 8;
  double lora_alpha = 8;
  double lora_dropout = 0;
  bool use_rslora = false;
  bool use_dora = false;
  bool fan_in_fan_out = false;
  bool lora_bias = false;
  bool inference_mode = true;
  std::string bias = "none";                 ///< none | all | lora_only
  std::string init_lora_weights = "true";    ///< true | false | gaussian | orthogonal | ...
  std::optional<Names> target_modules = {};  ///< absent: the model type's default
  std::optional<Names> exclude_modules = {};
  std::vector<std::string> modules_to_save = {};
  std::optional<TokenIndices> trainable_token_indices = {};
  std::optional<std::vector<int64_t>> layers_to_transform = {};
  std::vector<std::string> layers_pattern = {};
  Patterns rank_pattern = {};  ///< in file order
  AlphaPatterns alpha_pattern = {};
  /// The adapter makes up for the rounding of a base in so few bits (loftq_config); nothing: it does not.
  std::optional<Loftq> loftq = {};
};

/// The same with peft_type ADALORA. `lora` has the keys that LoRA has as well (its r, rank_pattern and use_rslora mean
/// nothing here). Source: tuners/adalora/config.py.
struct PeftAdaLoraConfig {
  PeftLoraConfig lora = {};
  int64_t init_r = 12, target_r = 8, tinit = 0, tfinal = 0, deltaT = 1, total_step = 0;
  double beta1 = 0.85, beta2 = 0.85, orth_reg_weight = 0.5;
  /// Which of its init_r ranks each module kept, by "<module>.lora_E"; absent: nothing was pruned.
  std::optional<std::map<std::string, std::vector<bool>>> rank_pattern = {};
};

/// peft_type IA3. Source: tuners/ia3/config.py.
struct PeftIa3Config {
  std::optional<std::string> base_model_name_or_path = {}, task_type = {}, revision = {};
  bool inference_mode = true, fan_in_fan_out = false, init_ia3_weights = true;
  std::optional<AdapterNames> target_modules = {}, exclude_modules = {}, feedforward_modules = {};
  std::vector<std::string> modules_to_save = {};
};

/// What the methods with virtual tokens share. Source: PEFT config.py PromptLearningConfig.
struct PeftPromptLearning {
  std::optional<std::string> base_model_name_or_path = {}, task_type = {}, revision = {};
  bool inference_mode = true;
  int64_t num_virtual_tokens = 20, num_transformer_submodules = 1;
  int64_t token_dim = 0, num_attention_heads = 0, num_layers = 0;  ///< 0: not said
};

/// peft_type PREFIX_TUNING. Source: tuners/prefix_tuning/config.py.
struct PeftPrefixConfig {
  PeftPromptLearning prompt = {};
  int64_t encoder_hidden_size = 0;  ///< 0: not said
  bool prefix_projection = false;
  std::optional<std::string> init_weights = {};  ///< zero
};

/// peft_type PROMPT_TUNING. Source: tuners/prompt_tuning/config.py.
struct PeftPromptConfig {
  PeftPromptLearning prompt = {};
  std::string prompt_tuning_init = "RANDOM";  ///< RANDOM | SAMPLE_VOCAB | TEXT
  std::optional<std::string> prompt_tuning_init_text = {}, tokenizer_name_or_path = {};
};

/// peft_type P_TUNING. Source: tuners/p_tuning/config.py.
struct PeftPTuningConfig {
  PeftPromptLearning prompt = {};
  std::string encoder_reparameterization_type = "MLP";  ///< MLP | LSTM
  int64_t encoder_hidden_size = 0;                      ///< 0: not said
  int64_t encoder_num_layers = 2;
  double encoder_dropout = 0;
};

/// peft_type TRAINABLE_TOKENS. Source: tuners/trainable_tokens/config.py.
struct PeftTrainableTokensConfig {
  std::optional<std::string> base_model_name_or_path = {}, task_type = {}, revision = {};
  bool inference_mode = true, init_weights = true;
  std::vector<int64_t> token_indices = {};
  std::optional<AdapterNames> target_modules = {};
};

/// AdapterHub's configuration of a bottleneck adapter, which has no peft_type. Source: AdapterHub's adapter_config.json files.
struct AdapterHubConfig {
  std::string name = "default", model_type = {}, model_name = {}, model_class = {};
  int64_t hidden_size = 0;
  bool mh_adapter = false, output_adapter = true, original_ln_before = true, is_parallel = false;
  double reduction_factor = 16, dropout = 0;
  std::optional<double> scaling = 1.0;  ///< nothing: "learned"
  std::string non_linearity = "relu", init_weights = "bert";
  std::vector<int64_t> leave_out = {};
};

using AdapterConfig = std::variant<PeftLoraConfig, PeftAdaLoraConfig, PeftIa3Config, PeftPrefixConfig, PeftPromptConfig,
                                   PeftPTuningConfig, AdapterHubConfig, PeftTrainableTokensConfig>;

/// A config, and what its file says that nobody here reads.
struct ParsedPeftConfig {
  AdapterConfig config = {};
  std::vector<std::string> unknown_keys = {};  ///< ignored; the caller warns
  std::vector<std::string> warnings = {};      ///< other things that the caller should say
};

/// Reads adapter_config.json. A file of an unknown peft_type, one without that is none of AdapterHub's, with a value of the
/// wrong type or out of range, or with a truthy key that changes the maths and is not built here
/// (layer_replication, ...) is a FormatError; `where` opens the message.
ParsedPeftConfig parse_adapter_config(std::string_view json, std::string_view where);

/// The text of adapter_config.json: every key of PEFT 0.21.2, sorted, indent 2; patterns keep their
/// order, which decides between them.
std::string write_adapter_config(const AdapterConfig& config);

}  // namespace lora::formats
