#pragma once

#include <string>
#include <variant>
#include <vector>

#include "lora/nn/adapter.h"
#include "lora/nn/linear.h"

namespace lora {

/// (IA)^3 (Liu et al. 2022): a learned factor per output of a layer, or per input of a feed-forward one. With PEFT's
/// meaning of every option.
struct Ia3Options {
  std::variant<std::vector<std::string>, std::string> targets = std::vector<std::string>{"k_proj", "v_proj", "down_proj"};
  std::variant<std::vector<std::string>, std::string> exclude = std::vector<std::string>{};
  /// Those of the targets whose inputs are scaled.
  std::variant<std::vector<std::string>, std::string> feedforward = std::vector<std::string>{"down_proj"};
  std::vector<std::string> modules_to_save = {};
  bool init_ones = true;             ///< false: normal, for tests
  std::string base_model_name = {};  ///< written into adapter_config.json
};

/// The factors of one Linear: ia3_l (out, 1), or (1, in) on a feed-forward layer; fp32, ones at the start. The bias of the
/// former is scaled with the rest. Source: PEFT 0.21 tuners/ia3/layer.py.
class Ia3Linear : public nn::Adapter {
 public:
  Ia3Linear(const nn::LinearLayout& layout, bool is_feedforward, bool init_ones = true);

  bool is_feedforward() const { return is_feedforward_; }

  at::Tensor delta(const at::Tensor& x) override;
  bool adds() const override { return false; }
  at::Tensor weight_delta() const override;
  bool scales() const override { return true; }
  at::Tensor input_scale() const override;
  at::Tensor output_scale(const at::Tensor& rows_RO, nn::LinearImpl& layer) override;
  bool scales_bias() const override { return true; }
  at::Tensor merged(const at::Tensor& weight, const at::Tensor& base) const override;
  at::Tensor merged_bias(const at::Tensor& bias) const override;

  at::Tensor ia3_l;

 private:
  bool is_feedforward_;
};

}  // namespace lora
