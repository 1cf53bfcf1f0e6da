#include "lora/adapters/adalora.h"

#include <ATen/ATen.h>
#include <torch/utils.h>

#include <algorithm>
#include <cmath>

#include "adapters/dropout_mask.h"
#include "core/check.h"
#include "lora/ops/ops.h"
#include "ops/rows.h"

// Legend: I inputs, O outputs, R rank.
namespace lora {
namespace {

/// |M - I|, whose gradient at zero is zero and not undefined.
at::Tensor distance_from_identity(const at::Tensor& product) {
  constexpr double kTiny = 1e-14;
  return ((product - at::eye(product.size(0), product.options())).square().sum() + kTiny).sqrt();
}

int64_t count(const std::vector<bool>& kept) { return std::count(kept.begin(), kept.end(), true); }

at::Tensor as_tensor(const std::vector<bool>& kept) {
  at::Tensor mask = at::empty({static_cast<int64_t>(kept.size())}, at::kBool);
  std::copy(kept.begin(), kept.end(), mask.data_ptr<bool>());
  return mask;
}

std::vector<bool> as_vector(const at::Tensor& mask) {
  const at::Tensor host = mask.to(at::kCPU).contiguous();
  const bool* first = host.const_data_ptr<bool>();
  return std::vector<bool>(first, first + host.numel());
}

}  // namespace

double adalora_scale(const AdaLoraOptions& options) {
  constexpr double kTinyRank = 1e-5;  // as PEFT, where a rank may become 0
  const auto rank = static_cast<double>(options.init_rank);
  return (options.alpha > 0 ? options.alpha : rank) / (rank + kTinyRank);
}

void check_adalora(const AdaLoraOptions& options, bool for_training) {
  const auto is_beta = [](double beta) { return beta > 0 && beta < 1; };
  require<ConfigError>(
      options.init_rank >= 1 && options.target_rank >= 1 && options.target_rank <= options.init_rank,
      "[adapters.adalora] target_r must be from 1 to init_r; found {} with an init_r of {}; use for example 8 and 12",
      options.target_rank, options.init_rank);
  require<ConfigError>(is_beta(options.beta1) && is_beta(options.beta2),
                       "[adapters.adalora] beta1 and beta2 must be between 0 and 1; found {} and {}; use 0.85", options.beta1,
                       options.beta2);
  require<ConfigError>(options.interval >= 1 && options.initial_steps >= 0 && options.final_steps >= 0,
                       "[adapters.adalora] deltaT must be at least 1, tinit and tfinal at least 0; found {}, {} and {}",
                       options.interval, options.initial_steps, options.final_steps);
  require<ConfigError>(options.orth_reg_weight >= 0, "[adapters.adalora] orth_reg_weight must not be negative; found {}; use 0.5",
                       options.orth_reg_weight);
  require<ConfigError>(options.dropout >= 0 && options.dropout < 1, "[adapters.adalora] lora_dropout must be in [0, 1); found {}",
                       options.dropout);
  if (!for_training) return;
  require<ConfigError>(options.total_steps > 0, "[adapters.adalora] total_step must be the number of training steps; found {}",
                       options.total_steps);
  require<ConfigError>(
      options.initial_steps < options.total_steps - options.final_steps,
      "[adapters.adalora] tinit must be less than total_step - tfinal, so that ranks can be allocated between; found "
      "tinit {}, tfinal {} and total_step {}; shorten one of the two",
      options.initial_steps, options.final_steps, options.total_steps);
}

AdaLoraLinear::AdaLoraLinear(const nn::LinearLayout& layout, int64_t rank, const AdaLoraOptions& options,
                             double regularizer_weight)
    : scale_(adalora_scale(options)), dropout_(options.dropout), regularizer_weight_(regularizer_weight) {
  constexpr double kDeviation = 0.02;
  lora_A = register_parameter("lora_A", at::empty({rank, layout.in_features}, at::kFloat).normal_(0, kDeviation));
  lora_B = register_parameter("lora_B", at::empty({layout.out_features, rank}, at::kFloat).normal_(0, kDeviation));
  lora_E = register_parameter("lora_E", at::zeros({rank, 1}, at::kFloat));
}

at::Tensor AdaLoraLinear::delta(const at::Tensor& x) {
  return ops::lora_delta(x, lora_A * lora_E, lora_B, scale_, adapters::dropout_mask(x, is_training() ? dropout_ : 0));
}

std::optional<nn::LowRankFactors> AdaLoraLinear::low_rank() const {
  if (!adds() || (is_training() && dropout_ > 0)) return std::nullopt;
  return nn::LowRankFactors{lora_A * lora_E, lora_B, scale_};
}

at::Tensor AdaLoraLinear::weight_delta() const {
  return ops::rows::widened(lora_B).mm(ops::rows::widened(lora_A * lora_E)) * scale_;
}

at::Tensor AdaLoraLinear::regularizer() const {
  if (!adds() || regularizer_weight_ == 0 || !lora_A.requires_grad()) return {};
  const at::Tensor distance = distance_from_identity(lora_A.mm(lora_A.t())) + distance_from_identity(lora_B.t().mm(lora_B));
  return distance * regularizer_weight_;
}

RankAllocator::RankAllocator(const AdaLoraOptions& options, Modules modules) : options_(options), modules_(std::move(modules)) {}

void RankAllocator::after_step(int64_t step, bool has_gradients) {
  const at::NoGradGuard no_grad;
  const int64_t last = options_.total_steps - options_.final_steps;  // the last step that may allocate
  if (step < last && has_gradients) {
    for (const auto& [path, module] : modules_) {
      for (const auto& parameter : module->named_parameters()) average(path + "." + parameter.key(), parameter.value());
    }
  }
  if (step > last) return apply_kept();
  if (allocates(step)) allocate(budget(step));
  if (step == last) averages_.clear();
}

int64_t RankAllocator::budget(int64_t step) const {
  const auto count = static_cast<int64_t>(modules_.size());
  const int64_t first = options_.init_rank * count, end = options_.target_rank * count;
  const int64_t last = options_.total_steps - options_.final_steps;
  if (step <= options_.initial_steps) return first;
  if (step > last) return end;
  const double left = 1 - static_cast<double>(step - options_.initial_steps) / static_cast<double>(last - options_.initial_steps);
  return static_cast<int64_t>(static_cast<double>(first - end) * std::pow(left, 3) + static_cast<double>(end));
}

bool RankAllocator::allocates(int64_t step) const {
  const int64_t last = options_.total_steps - options_.final_steps;
  if (step == last) return true;
  return step > options_.initial_steps && step < last && step % options_.interval == 0;
}

void RankAllocator::average(const std::string& name, const at::Tensor& parameter) {
  if (!parameter.grad().defined()) return;
  Averages& averages = averages_[name];
  if (!averages.importance.defined()) averages = {at::zeros_like(parameter), at::zeros_like(parameter)};
  const at::Tensor importance = (parameter * parameter.grad()).abs();
  averages.importance.mul_(options_.beta1).add_(importance * (1 - options_.beta1));
  averages.uncertainty.mul_(options_.beta2).add_((importance - averages.importance).abs() * (1 - options_.beta2));
}

at::Tensor RankAllocator::score(const std::string& name) const {
  const Averages& averages = averages_.at(name);
  return averages.importance * averages.uncertainty;
}

void RankAllocator::allocate(int64_t budget) {
  const int64_t pruned = options_.init_rank * static_cast<int64_t>(modules_.size()) - budget;
  if (averages_.empty()) return;  // no step had gradients: nothing tells one rank from another
  std::vector<at::Tensor> scores;
  for (const auto& [path, module] : modules_) {
    const at::Tensor others = at::stack({score(path + ".lora_A").mean(1), score(path + ".lora_B").mean(0)}, 1).sum(1);
    scores.push_back(score(path + ".lora_E").view(-1) + others);
  }
  std::vector<std::vector<bool>> kept;
  if (pruned == 0) {
    for (const auto& module_scores : scores) kept.emplace_back(static_cast<size_t>(module_scores.numel()), true);
  } else {
    const at::Tensor threshold = std::get<0>(at::kthvalue(at::cat(scores), pruned));
    for (const auto& module_scores : scores) kept.push_back(as_vector(module_scores > threshold));
  }
  kept_ = std::move(kept);
  apply_kept();
}

void RankAllocator::apply_kept() {
  if (!kept_) return;
  for (size_t i = 0; i < modules_.size(); ++i) {
    at::Tensor& e_R1 = modules_[i].second->lora_E;
    e_R1.masked_fill_(as_tensor((*kept_)[i]).logical_not().unsqueeze(1).to(e_R1.device()), 0);
  }
}

std::vector<int64_t> RankAllocator::ranks() const {
  std::vector<int64_t> ranks;
  for (size_t i = 0; i < modules_.size(); ++i) ranks.push_back(kept_ ? count((*kept_)[i]) : options_.init_rank);
  return ranks;
}

std::vector<std::string> RankAllocator::paths() const {
  std::vector<std::string> paths;
  for (const auto& entry : modules_) paths.push_back(entry.first);
  return paths;
}

std::map<std::string, at::Tensor> RankAllocator::state() const {
  std::map<std::string, at::Tensor> state;
  for (const auto& [name, averages] : averages_) {
    state.emplace("importance." + name, averages.importance);
    state.emplace("uncertainty." + name, averages.uncertainty);
  }
  for (size_t i = 0; kept_ && i < modules_.size(); ++i) state.emplace("kept." + modules_[i].first, as_tensor((*kept_)[i]));
  return state;
}

void RankAllocator::load_state(const std::map<std::string, at::Tensor>& state) {
  std::map<std::string, Averages> averages;
  std::vector<std::vector<bool>> kept;
  const auto find = [&](const std::string& key, at::IntArrayRef sizes, at::ScalarType type) -> const at::Tensor* {
    const auto found = state.find(key);
    if (found == state.end()) return nullptr;
    require<ShapeError>(found->second.sizes() == sizes && found->second.scalar_type() == type,
                        "[adapters.adalora] the saved {:?} must be [{}]; found [{}]; resume with the settings it was saved with",
                        key, fmt::join(sizes, ", "), fmt::join(found->second.sizes(), ", "));
    return &found->second;
  };
  size_t used = 0;
  for (const auto& [path, module] : modules_) {
    for (const auto& parameter : module->named_parameters()) {
      const std::string name = path + "." + parameter.key();
      const auto sizes = parameter.value().sizes();
      const auto* importance = find("importance." + name, sizes, at::kFloat);
      const auto* uncertainty = find("uncertainty." + name, sizes, at::kFloat);
      if (importance == nullptr || uncertainty == nullptr) continue;
      const auto device = parameter.value().device();
      averages[name] = {importance->to(device, /*non_blocking=*/false, /*copy=*/true), uncertainty->to(device, false, true)};
      used += 2;
    }
    if (const auto* mask = find("kept." + path, {options_.init_rank}, at::kBool)) {
      kept.push_back(as_vector(*mask));
      ++used;
    }
  }
  require<ShapeError>(used == state.size() && (kept.empty() || kept.size() == modules_.size()),
                      "[adapters.adalora] a saved state must belong to these modules; {} of its {} tensors do; resume with the "
                      "settings it was saved with",
                      used, state.size());
  averages_ = std::move(averages);
  kept_ = kept.empty() ? std::nullopt : std::optional(std::move(kept));
}

}  // namespace lora
