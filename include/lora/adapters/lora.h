#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "lora/adapters/trainable_tokens.h"
#include "lora/nn/adapter.h"
#include "lora/nn/embedding.h"
#include "lora/nn/linear.h"

namespace lora {

/// What LoftQ makes up for (see loftq.h).
struct LoftqOptions {
  int64_t bits = 4;        ///< of the base
  int64_t iterations = 1;  ///< of quantising what the factors leave, and fitting them again
  bool operator==(const LoftqOptions&) const = default;
};

/// LoRA, rsLoRA and DoRA (Hu et al. 2021; Kalajdzievski 2023; Liu et al. 2024), with PEFT's meaning of every option.
struct LoraOptions {
  int64_t rank = 8;
  double alpha = 8;
  double dropout = 0;            ///< on the input of A, in training (not on an Embedding's ids)
  bool rank_stabilized = false;  ///< scale = alpha / sqrt(rank) instead of alpha / rank
  bool dora = false;             ///< magnitude and direction of the weight learn apart (see dora.h)
  /// true (A uniform, B zero) | false (both uniform) | gaussian | orthogonal, and for Linear layers pissa |
  /// pissa_niter_N | olora, which start from the base weight (see residual_start.h), and eva | loftq, which are as true until
  /// initialize_eva() (eva.h) or initialize_loftq() (loftq.h)
  std::string init = "true";
  /// none | all | lora_only: which base biases train
  std::string bias = "none";

  /// Which modules: names or dot-suffixes, or one regular expression over the whole path, or
  /// "all-linear".
  std::variant<std::vector<std::string>, std::string> targets = std::vector<std::string>{"q_proj", "v_proj"};
  std::variant<std::vector<std::string>, std::string> exclude = std::vector<std::string>{};
  std::optional<std::vector<int64_t>> layers_to_transform = {};
  std::vector<std::string> layers_pattern = {};
  /// Other ranks and alphas for modules whose path matches the key, first match wins.
  std::vector<std::pair<std::string, int64_t>> rank_pattern = {};
  std::vector<std::pair<std::string, double>> alpha_pattern = {};
  /// Modules trained whole (a copy in fp32, stored with the adapter), by name or dot-suffix.
  std::vector<std::string> modules_to_save = {};
  /// Rows of embeddings that train beside the updates.
  std::optional<TokenIndices> token_indices = {};

  /// Written into adapter_config.json.
  std::string base_model_name = {};
  /// The adapter makes up for the rounding of a base in so few bits, and belongs on no other. Set by initialize_loftq(), and
  /// read from files.
  std::optional<LoftqOptions> loftq = {};
};

/// What the module at one path gets: rank_pattern and alpha_pattern where they match, else rank and alpha.
struct LoraSize {
  int64_t rank;
  double alpha;
  double scale;  ///< of B A: alpha / rank, or alpha / sqrt(rank) when rank_stabilized
};
LoraSize lora_size(const LoraOptions& options, std::string_view path);

/// The low-rank update of one Linear: lora_A (rank, in) and lora_B (out, rank), fp32.
class LoraLinear : public nn::Adapter {
 public:
  /// Throws ConfigError for rank < 1, dropout outside [0, 1), an unknown init, or an odd rank with
  /// "orthogonal". With an init that starts from the base weight the factors are as for "true" until start_from().
  LoraLinear(const nn::LinearLayout& layout, int64_t rank, double alpha, const LoraOptions& options);

  /// Sets the factors and remembers them: from now on the update is what they have changed, scale * (B A - B0 A0), so that
  /// it begins at zero. PEFT takes scale * B0 A0 out of the base weight instead, which is the same sum; here the base stays.
  void start_from(const at::Tensor& a_RI, const at::Tensor& b_OR);
  /// Whether start_from was called. The update then has twice the rank.
  bool has_start() const { return start_A.defined(); }

  at::Tensor delta(const at::Tensor& x) override;
  std::optional<nn::LowRankFactors> low_rank() const override;
  at::Tensor weight_delta() const override;
  double scale() const { return scale_; }
  int64_t rank() const { return lora_A.size(0); }

  at::Tensor lora_A, lora_B;
  at::Tensor start_A, start_B;  ///< buffers; undefined without start_from

 protected:
  /// The factors of the whole update: with a start [A; A0] and [B, -B0].
  nn::LowRankFactors factors() const;
  /// 0 outside training.
  double dropout_now() const { return is_training() ? dropout_ : 0; }

 private:
  double scale_, dropout_;
};

/// The low-rank update of one Embedding: lora_embedding_A (rank, vocabulary) and lora_embedding_B
/// (dim, rank), fp32.
class LoraEmbedding : public nn::Adapter {
 public:
  LoraEmbedding(const nn::EmbeddingOptions& base, int64_t rank, double alpha, const LoraOptions& options);

  at::Tensor delta(const at::Tensor& ids) override;
  at::Tensor weight_delta() const override;
  double scale() const { return scale_; }

  at::Tensor lora_embedding_A, lora_embedding_B;

 private:
  double scale_;
};

}  // namespace lora
