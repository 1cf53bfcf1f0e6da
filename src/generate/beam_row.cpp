#include "generate/beam_row.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "generate/distribution.h"
#include "generate/logit_rules.h"
#include "generate/next_token.h"

// Legend: N sequences, V vocabulary.
namespace lora::generate {
namespace {

/// What stands for "not to be chosen" in scores: finite, so that sums stay numbers.
constexpr float kWorst = -1e9F;

struct Candidate {
  float score = 0;
  int64_t beam = 0, id = 0;
};

/// A total order, so that every platform keeps the same ones.
bool comes_before(const Candidate& a, const Candidate& b) {
  return a.score > b.score || (a.score == b.score && (a.beam < b.beam || (a.beam == b.beam && a.id < b.id)));
}

/// The best `most` of what it is offered.
class BestCandidates {
 public:
  explicit BestCandidates(size_t most) : most_(most) {}
  void offer(const Candidate& candidate) {
    if (best_.size() == most_) {
      if (!comes_before(candidate, best_.front())) return;
      std::ranges::pop_heap(best_, comes_before);
      best_.pop_back();
    }
    best_.push_back(candidate);
    std::ranges::push_heap(best_, comes_before);
  }
  std::vector<Candidate> sorted() && {
    std::ranges::sort_heap(best_, comes_before);
    return std::move(best_);
  }

 private:
  size_t most_;
  std::vector<Candidate> best_;  ///< a heap with the worst in front
};

/// The divisor of a sum of log-probabilities over so many tokens.
float length_factor(int64_t length, double penalty) { return static_cast<float>(std::pow(static_cast<double>(length), penalty)); }

/// The first `count` by score; equals keep their order.
template <class Beam>
void keep_first(std::vector<Beam>& beams, size_t count) {
  std::ranges::stable_sort(beams, std::greater<>(), &Beam::score);
  if (beams.size() > count) beams.resize(count);
}

}  // namespace

BeamRow::BeamRow(std::vector<int64_t> prompt_ids, int64_t limit, const GenerateOptions& options)
    : options_(options), prompt_length_(prompt_ids.size()), limit_(limit) {
  const auto count = static_cast<size_t>(options.beams.num_beams);
  running_.resize(count);
  ended_.resize(count);
  for (Beam& beam : running_) {
    beam.ids = prompt_ids;
    beam.score = kWorst;  // all begin alike: only the first has continuations
  }
  running_.front().score = 0;
  for (Beam& beam : ended_) beam.score = kWorst;
}

void BeamRow::take(const at::Tensor& logits_NV) {
  const at::Tensor logprobs_NV = at::log_softmax(logits_NV, 1);
  require_distribution(!logprobs_NV.isnan().any().item<bool>());
  std::vector<Beam> extended = extensions(logprobs_NV);
  require_choice(std::isfinite(extended.front().score));
  ++num_new_;
  for (Beam& beam : extended) beam.has_ended = num_new_ == limit_ || is_end(answer(beam), options_);
  running_ = still_running(extended);
  keep_best_ended(extended);
  may_improve_ = may_improve_ && can_improve();
  const bool is_full = all_have_ended() && options_.beams.early_stopping == EarlyStopping::kYes;
  is_over_ = !may_improve_ || is_full || std::ranges::all_of(extended, &Beam::has_ended);
}

std::vector<BeamRow::Beam> BeamRow::extensions(const at::Tensor& logprobs_NV) const {
  const int64_t vocabulary = logprobs_NV.size(1);
  // So many more than there are beams that enough remain should all the best ones end.
  const size_t ends = std::max<size_t>(1, options_.stop_ids.size());
  BestCandidates best((1 + ends) * running_.size());
  const auto logprobs_after = [&](int64_t beam) {
    return logprobs_NV.const_data_ptr<float>() + (logprobs_NV.size(0) == 1 ? 0 : beam) * vocabulary;
  };
  std::vector<float> scores(static_cast<size_t>(vocabulary));
  for (int64_t beam = 0; beam < options_.beams.num_beams; ++beam) {
    const Beam& running = running_[static_cast<size_t>(beam)];
    std::copy_n(logprobs_after(beam), vocabulary, scores.begin());
    apply_rules(options_, running.ids, num_new_, scores);
    for (int64_t id = 0; id < vocabulary; ++id) best.offer({scores[id] + running.score, beam, id});
  }
  std::vector<Beam> extended;
  for (const Candidate& candidate : std::move(best).sorted()) {
    Beam beam = running_[static_cast<size_t>(candidate.beam)];
    beam.ids.push_back(candidate.id);
    beam.logprobs.push_back(logprobs_after(candidate.beam)[candidate.id]);
    beam.score = candidate.score;
    beam.parent = logprobs_NV.size(0) == 1 ? 0 : candidate.beam;
    extended.push_back(std::move(beam));
  }
  return extended;
}

std::vector<BeamRow::Beam> BeamRow::still_running(const std::vector<Beam>& extended) const {
  std::vector<Beam> beams = extended;
  for (Beam& beam : beams) beam.score += beam.has_ended ? kWorst : 0;
  keep_first(beams, running_.size());
  return beams;
}

void BeamRow::keep_best_ended(const std::vector<Beam>& extended) {
  const float length = length_factor(num_new_, options_.beams.length_penalty);
  const bool is_closed = !may_improve_ || (all_have_ended() && options_.beams.early_stopping == EarlyStopping::kYes);
  for (size_t i = 0; i < extended.size(); ++i) {
    Beam beam = extended[i];
    // What ends below the first num_beams was kept as a reserve alone.
    beam.has_ended = beam.has_ended && i < running_.size();
    beam.score /= length;
    if (is_closed) beam.score += kWorst;
    if (!beam.has_ended) beam.score += kWorst;
    ended_.push_back(std::move(beam));
  }
  keep_first(ended_, running_.size());
}

/// Whether the best running beam may yet rank above an ended one.
bool BeamRow::can_improve() const {
  if (!all_have_ended()) return true;
  const double penalty = options_.beams.length_penalty;
  const bool to_the_end = options_.beams.early_stopping == EarlyStopping::kNever && penalty > 0;
  const float best = running_.front().score / length_factor(to_the_end ? limit_ : num_new_, penalty);
  return best > ended_.back().score;
}

bool BeamRow::all_have_ended() const { return std::ranges::all_of(ended_, &Beam::has_ended); }

std::vector<Continuation> BeamRow::continuations() const {
  std::vector<Continuation> result;
  if (is_over_) return result;
  for (const Beam& beam : running_) result.push_back({.parent = beam.parent, .id = beam.ids.back()});
  return result;
}

Generation BeamRow::generation(const Beam& beam) const {
  Generation result;
  const auto ids = answer(beam);
  result.token_ids.assign(ids.begin(), ids.end());
  result.logprobs = beam.logprobs;
  for (const double logprob : beam.logprobs) result.score += logprob;
  result.finish_reason = is_end(ids, options_) ? "stop" : "length";
  result.beam_score = beam.score;
  return result;
}

Generation BeamRow::result() const {
  require<ConfigError>(ended_.front().has_ended, "[length_penalty] must be so close to 0 that sequences still rank; found {}",
                       options_.beams.length_penalty);
  Generation best = generation(ended_.front());
  for (size_t i = 1; i < static_cast<size_t>(options_.beams.num_sequences); ++i) {
    if (ended_[i].has_ended) best.others.push_back(generation(ended_[i]));
  }
  return best;
}

}  // namespace lora::generate
