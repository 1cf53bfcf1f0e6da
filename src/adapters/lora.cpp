#include "lora/adapters/lora.h"

#include <ATen/ATen.h>

#include <cmath>
#include <set>

#include "adapters/dropout_mask.h"
#include "adapters/residual_start.h"
#include "core/check.h"
#include "lora/core/pattern.h"
#include "lora/ops/ops.h"
#include "ops/rows.h"

namespace lora {
namespace {

using ops::rows::widened;

void require_valid(int64_t rank, double alpha, const LoraOptions& options) {
  static const std::set<std::string> kInits = {"true", "false", "gaussian", "orthogonal", "pissa", "olora", "eva", "loftq"};
  require<ConfigError>(rank >= 1, "[adapters.lora] r must be at least 1; found {}; use for example 8", rank);
  require<ConfigError>(std::isfinite(alpha),
                       "[adapters.lora] lora_alpha must be a finite number; found {}; use for "
                       "example 2 * r",
                       alpha);
  require<ConfigError>(options.dropout >= 0 && options.dropout < 1,
                       "[adapters.lora] lora_dropout must be in [0, 1); found {}; use 0 for none", options.dropout);
  require<ConfigError>(kInits.contains(options.init) || adapters::pissa_iterations(options.init),
                       "[adapters.lora] init_lora_weights must be one of {}, pissa_niter_N; found {:?}; use true",
                       fmt::join(kInits, ", "), options.init);
}

double scale_of(int64_t rank, double alpha, bool rank_stabilized) {
  const auto r = static_cast<double>(rank);
  return alpha / (rank_stabilized ? std::sqrt(r) : r);
}

at::Tensor uniform(int64_t rows, int64_t columns, double bound) {
  return at::empty({rows, columns}, at::kFloat).uniform_(-bound, bound);
}

/// What torch.nn.Linear starts with, its kaiming_uniform(a = sqrt 5): bound 1 / sqrt(inputs).
at::Tensor linear_default(int64_t outputs, int64_t inputs) {
  return uniform(outputs, inputs, 1 / std::sqrt(static_cast<double>(inputs)));
}

struct Factors {
  at::Tensor a_RI, b_OR;
};

/// Source: PEFT 0.21 LoraLayer.orthogonal_init.
Factors orthogonal_factors(int64_t inputs, int64_t outputs, int64_t rank) {
  require<ConfigError>(rank % 2 == 0,
                       "[adapters.lora] init_lora_weights orthogonal needs an even r; found {}; "
                       "use {} or another init",
                       rank, rank + 1);
  const auto q_RR = std::get<0>(at::linalg_qr(at::randn({rank, rank}, at::kFloat)));
  const auto a_RI = at::randn({inputs, rank / 2}, at::kFloat).mm(q_RR.slice(0, 0, rank, 2)).t() / 10;
  const auto b_OR = at::randn({rank / 2, outputs}, at::kFloat).t().mm(q_RR.slice(0, 1, rank, 2)) / 10;
  return {a_RI.contiguous(), b_OR.contiguous()};
}

Factors linear_factors(int64_t inputs, int64_t outputs, int64_t rank, const std::string& init) {
  if (init == "orthogonal") return orthogonal_factors(inputs, outputs, rank);
  const auto a_RI = init == "gaussian" ? at::empty({rank, inputs}, at::kFloat).normal_(0, 1 / static_cast<double>(rank))
                                       : linear_default(rank, inputs);
  return {a_RI, init == "false" ? linear_default(outputs, rank) : at::zeros({outputs, rank}, at::kFloat)};
}

/// The part of a whole factor that belongs to this rank's piece of a cut layer.
at::Tensor part_of(const at::Tensor& whole, int64_t dim, const nn::LinearLayout& layout) {
  const int64_t length = whole.size(dim) / layout.size;
  return whole.narrow(dim, layout.rank * length, length).contiguous();
}

}  // namespace

LoraSize lora_size(const LoraOptions& options, std::string_view path) {
  const int64_t rank = PatternMap(options.rank_pattern, "rank_pattern").find(path).value_or(options.rank);
  const auto own_alpha = PatternMap(options.alpha_pattern, "alpha_pattern").find(path);
  const double alpha = own_alpha.value_or(options.alpha);
  return {rank, alpha, scale_of(rank, alpha, options.rank_stabilized)};
}

LoraLinear::LoraLinear(const nn::LinearLayout& layout, int64_t rank, double alpha, const LoraOptions& options)
    : scale_(scale_of(rank, alpha, options.rank_stabilized)), dropout_(options.dropout) {
  require_valid(rank, alpha, options);
  auto [a_RI, b_OR] = linear_factors(layout.in_features, layout.out_features, rank, options.init);
  if (layout.cut == nn::LinearLayout::Cut::kRow) a_RI = part_of(a_RI, 1, layout);
  if (layout.cut == nn::LinearLayout::Cut::kColumn) b_OR = part_of(b_OR, 0, layout);
  lora_A = register_parameter("lora_A", a_RI);
  lora_B = register_parameter("lora_B", b_OR);
}

void LoraLinear::start_from(const at::Tensor& a_RI, const at::Tensor& b_OR) {
  const torch::NoGradGuard no_grad;
  lora_A.copy_(a_RI);
  lora_B.copy_(b_OR);
  if (!has_start()) {
    start_A = register_buffer("start_A", at::empty_like(lora_A));
    start_B = register_buffer("start_B", at::empty_like(lora_B));
  }
  start_A.copy_(lora_A);
  start_B.copy_(lora_B);
}

nn::LowRankFactors LoraLinear::factors() const {
  if (!has_start()) return {lora_A, lora_B, scale_};
  return {at::cat({lora_A, start_A}), at::cat({lora_B, -start_B}, 1), scale_};
}

at::Tensor LoraLinear::delta(const at::Tensor& x) {
  const auto [a_RI, b_OR, scale] = factors();
  return ops::lora_delta(x, a_RI, b_OR, scale, adapters::dropout_mask(x, dropout_now()));
}

std::optional<nn::LowRankFactors> LoraLinear::low_rank() const {
  if (dropout_now() > 0) return std::nullopt;
  return factors();
}

at::Tensor LoraLinear::weight_delta() const {
  const auto [a_RI, b_OR, scale] = factors();
  return widened(b_OR).mm(widened(a_RI)) * scale;
}

LoraEmbedding::LoraEmbedding(const nn::EmbeddingOptions& base, int64_t rank, double alpha, const LoraOptions& options)
    : scale_(scale_of(rank, alpha, options.rank_stabilized)) {
  require_valid(rank, alpha, options);
  // The roles are swapped against a Linear: it is A that starts at zero.
  const auto a_RV = at::empty({rank, base.num_embeddings}, at::kFloat);
  const auto b_DR = at::empty({base.embedding_dim, rank}, at::kFloat);
  lora_embedding_A = register_parameter("lora_embedding_A", options.init == "false" ? a_RV.normal_() : a_RV.zero_());
  lora_embedding_B = register_parameter("lora_embedding_B", b_DR.normal_());
}

at::Tensor LoraEmbedding::delta(const at::Tensor& ids) {
  return at::embedding(lora_embedding_A.t(), ids).matmul(lora_embedding_B.t()) * scale_;
}

at::Tensor LoraEmbedding::weight_delta() const { return widened(lora_embedding_B).mm(widened(lora_embedding_A)).t() * scale_; }

}  // namespace lora
