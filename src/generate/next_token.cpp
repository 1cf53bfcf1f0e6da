#include "generate/next_token.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/check.h"
#include "generate/logit_rules.h"

namespace lora::generate {
namespace {

void require_at_least(int64_t least, int64_t value, std::string_view name) {
  require<ConfigError>(value >= least, "[{}] must be at least {}; found {}", name, least, value);
}

}  // namespace

void check_options(const BeamOptions& options) {
  require_at_least(1, options.num_beams, "num_beams");
  require<ConfigError>(options.num_sequences >= 1 && options.num_sequences <= options.num_beams,
                       "[num_sequences] must be at least 1 and at most the {} beams; found {}", options.num_beams,
                       options.num_sequences);
  require<ConfigError>(std::isfinite(options.length_penalty), "[length_penalty] must be a finite number; found {}",
                       options.length_penalty);
}

void check_options(const GenerateOptions& options) {
  check_options(options.sampling);
  check_options(options.beams);
  require<ConfigError>(options.beams.num_beams == 1 || options.sampling.temperature == 0,
                       "[temperature] must be 0 with {} beams, since a beam search draws nothing; found {}",
                       options.beams.num_beams, options.sampling.temperature);
  require_at_least(0, options.max_new_tokens, "max_new_tokens");
  require_at_least(0, options.min_new_tokens, "min_new_tokens");
  require_at_least(0, options.no_repeat_ngram_size, "no_repeat_ngram_size");
  require_at_least(0, options.prompt_lookup_num_tokens, "prompt_lookup_num_tokens");
  require<ConfigError>(std::isfinite(options.repetition_penalty) && options.repetition_penalty > 0,
                       "[repetition_penalty] must be a finite number above 0; found {}; 1 changes nothing",
                       options.repetition_penalty);
}

SampledToken next_token(const at::Tensor& logits_V, std::span<const int64_t> ids, int64_t num_new, const GenerateOptions& options,
                        SplitMix64& random) {
  if (!has_rules(options)) return sample_token(logits_V, options.sampling, random);
  const at::Tensor host_V = logits_V.detach().to(at::kCPU, at::kFloat).contiguous();
  const float* logits = host_V.const_data_ptr<float>();
  std::vector<float> scores(logits, logits + host_V.numel());
  apply_rules(options, ids, num_new, scores);
  return sample_token(host_V, scores, options.sampling, random);
}

void add_token(const SampledToken& token, const GenerateOptions& options, Generation& result) {
  result.token_ids.push_back(token.id);
  result.logprobs.push_back(token.logprob);
  result.score += token.logprob;
  result.finish_reason = is_end(result.token_ids, options) ? "stop" : "length";
}

bool is_end(std::span<const int64_t> new_ids, const GenerateOptions& options) {
  return std::ranges::find(options.stop_ids, new_ids.back()) != options.stop_ids.end() ||
         (options.stop_when && options.stop_when(new_ids));
}

}  // namespace lora::generate
