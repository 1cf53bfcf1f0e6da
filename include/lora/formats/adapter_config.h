#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace lora::formats {

/// `adapter_config.json` of PEFT with peft_type LORA, in PEFT's words and with PEFT's defaults.
/// Source: PEFT 0.21.2 tuners/lora/config.py.
struct PeftLoraConfig {
  using Names = std::variant<std::vector<std::string>, std::string>;
  using Patterns = std::vector<std::pair<std::string, int64_t>>;

  std::optional<std::string> base_model_name_or_path = {}, task_type = {}, revision = {};
  int64_t r = 8;
  double lora_alpha = 8;
  double lora_dropout = 0;
  bool use_rslora = false;
  bool fan_in_fan_out = false;
  bool lora_bias = false;
  bool inference_mode = true;
  std::string bias = "none";                 ///< none | all | lora_only
  std::string init_lora_weights = "true";    ///< true | false | gaussian | orthogonal | ...
  std::optional<Names> target_modules = {};  ///< absent: the model type's default
  std::optional<Names> exclude_modules = {};
  std::vector<std::string> modules_to_save = {};
  std::optional<std::vector<int64_t>> layers_to_transform = {};
  std::vector<std::string> layers_pattern = {};
  Patterns rank_pattern = {}, alpha_pattern = {};  ///< in file order
};

struct ParsedPeftConfig {
  PeftLoraConfig config = {};
  std::vector<std::string> unknown_keys = {};  ///< ignored; the caller warns
  std::vector<std::string> warnings = {};      ///< other things that the caller should say
};

/// Reads adapter_config.json. A file without peft_type, of another peft_type, with a value of the
/// wrong type or out of range, or with a truthy key that changes the maths and is not built here
/// (use_dora, layer_replication, ...) is a FormatError; `where` opens the message.
ParsedPeftConfig parse_peft_lora_config(std::string_view json, std::string_view where);

/// The text of adapter_config.json: every key of PEFT 0.21.2, sorted, indent 2; patterns keep their
/// order, which decides between them.
std::string write_peft_lora_config(const PeftLoraConfig& config);

}  // namespace lora::formats
