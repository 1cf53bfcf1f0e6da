#include "lora/generate/sampler.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "core/check.h"
#include "generate/distribution.h"

// Legend: V vocabulary.
namespace lora::generate {
namespace {

struct Candidate {
  int64_t id = 0;
  double weight = 0;  ///< its probability times a factor common to all
};

/// Likelier first, lower ids first among equals: a total order, so that every platform cuts alike.
bool comes_before(const Candidate& a, const Candidate& b) { return a.weight > b.weight || (a.weight == b.weight && a.id < b.id); }

double total_weight(const std::vector<Candidate>& candidates) {
  double total = 0;
  for (const Candidate& candidate : candidates) total += candidate.weight;
  return total;
}

/// exp(logit / temperature), scaled so that the greatest is 1.
std::vector<Candidate> all_candidates(std::span<const float> logits, double temperature) {
  const double greatest = *std::ranges::max_element(logits);
  std::vector<Candidate> candidates(logits.size());
  for (size_t id = 0; id < logits.size(); ++id) {
    candidates[id] = {static_cast<int64_t>(id), std::exp((logits[id] - greatest) / temperature)};
  }
  return candidates;
}

void keep_top_k(std::vector<Candidate>& candidates, int64_t top_k) {
  const auto count = static_cast<size_t>(top_k);
  if (top_k == 0 || count >= candidates.size()) return;
  std::ranges::nth_element(candidates, candidates.begin() + top_k, comes_before);
  candidates.resize(count);
  // nth_element leaves an order of the standard library's choice, which must not decide the draw.
  std::ranges::sort(candidates, comes_before);
}

/// Few tokens are likely, so they are taken from a heap one by one: the vocabulary is never sorted.
void keep_top_p(std::vector<Candidate>& candidates, double top_p) {
  if (top_p >= 1) return;
  const auto less_likely = [](const auto& a, const auto& b) { return comes_before(b, a); };
  const double limit = top_p * total_weight(candidates);
  std::ranges::make_heap(candidates, less_likely);
  std::vector<Candidate> kept;
  for (double before = 0; before <= limit && !candidates.empty(); before += kept.back().weight) {
    std::ranges::pop_heap(candidates, less_likely);
    kept.push_back(candidates.back());
    candidates.pop_back();
  }
  candidates = std::move(kept);
}

int64_t draw(const std::vector<Candidate>& candidates, SplitMix64& random) {
  const double threshold = random.uniform() * total_weight(candidates);
  size_t chosen = 0;
  double cumulative = candidates[0].weight;
  while (cumulative <= threshold && chosen + 1 < candidates.size()) {
    cumulative += candidates[++chosen].weight;
  }
  return candidates[chosen].id;
}

int64_t index_of_greatest(std::span<const float> values) { return std::ranges::max_element(values) - values.begin(); }

void check_scores(std::span<const float> scores, size_t vocabulary) {
  require<ShapeError>(scores.size() == vocabulary, "[scores] must be one value per token, {}; found {}", vocabulary,
                      scores.size());
  require_choice(std::ranges::any_of(scores, [](float score) { return std::isfinite(score); }));
}

int64_t choose(std::span<const float> logits, int64_t likeliest, const SamplingOptions& options, SplitMix64& random) {
  if (options.temperature == 0) return likeliest;
  std::vector<Candidate> candidates = all_candidates(logits, options.temperature);
  keep_top_k(candidates, options.top_k);
  keep_top_p(candidates, options.top_p);
  return draw(candidates, random);
}

}  // namespace

void check_options(const SamplingOptions& options) {
  require<ConfigError>(std::isfinite(options.temperature) && options.temperature >= 0,
                       "[temperature] must be a finite number of at least 0; found {}; 0 always "
                       "takes the likeliest token",
                       options.temperature);
  require<ConfigError>(options.top_k >= 0, "[top_k] must be at least 0; found {}; 0 keeps all tokens", options.top_k);
  require<ConfigError>(options.top_p > 0 && options.top_p <= 1,
                       "[top_p] must be above 0 and at most 1; found {}; 1 keeps all tokens", options.top_p);
}

SampledToken sample_token(const at::Tensor& logits_V, const SamplingOptions& options, SplitMix64& random) {
  return sample_token(logits_V, {}, options, random);
}

SampledToken sample_token(const at::Tensor& logits_V, std::span<const float> scores, const SamplingOptions& options,
                          SplitMix64& random) {
  check_options(options);
  require<ShapeError>(logits_V.dim() == 1 && logits_V.size(0) > 0, "[logits] must be one value per token; found the shape {}",
                      fmt::join(logits_V.sizes(), " x "));
  const at::Tensor host_V = logits_V.detach().to(at::kCPU, at::kFloat).contiguous();
  const std::span<const float> logits(host_V.const_data_ptr<float>(), static_cast<size_t>(host_V.numel()));
  int64_t likeliest = index_of_greatest(logits);
  const at::Tensor logprobs_V = at::log_softmax(host_V, 0);
  const float* logprobs = logprobs_V.const_data_ptr<float>();
  // NaN reaches every log-probability; infinity minus infinity, the greatest one's, is NaN.
  require_distribution(!std::isnan(logprobs[likeliest]));
  if (!scores.empty()) {
    check_scores(scores, logits.size());
    likeliest = index_of_greatest(scores);
  }
  const int64_t id = choose(scores.empty() ? logits : scores, likeliest, options, random);
  return {id, static_cast<double>(logprobs[id])};
}

}  // namespace lora::generate
