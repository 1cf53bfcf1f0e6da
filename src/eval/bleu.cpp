#include "lora/eval/bleu.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "eval/characters.h"

namespace lora::eval {
namespace {

constexpr size_t kMaxOrder = 4;
constexpr char32_t kEnd = 0x110000;  // stands behind the last character of a text; no character has it

/// A character and the three that follow it.
using Window = std::array<char32_t, kMaxOrder>;

/// One for each character, sorted: equal n-grams lie next to each other, for every n at once.
std::vector<Window> sorted_windows(std::u32string text) {
  const size_t size = text.size();
  text.append(kMaxOrder - 1, kEnd);
  std::vector<Window> windows(size);
  for (size_t i = 0; i < size; ++i) std::copy_n(text.begin() + i, kMaxOrder, windows[i].begin());
  std::ranges::sort(windows);
  return windows;
}

/// Order of two windows by their first n characters: below, equal to or above 0.
int compare(const Window& a, const Window& b, size_t n) {
  for (size_t i = 0; i < n; ++i) {
    if (a[i] != b[i]) return a[i] < b[i] ? -1 : 1;
  }
  return 0;
}

/// n-grams that both have, each as often as the one that has it less often.
int64_t num_matches(const std::vector<Window>& hypothesis, const std::vector<Window>& reference, size_t n) {
  int64_t count = 0;
  auto h = hypothesis.begin(), r = reference.begin();
  while (h != hypothesis.end() && r != reference.end()) {
    const int order = compare(*h, *r, n);
    const bool is_whole = (*h)[n - 1] != kEnd;
    if (order == 0 && is_whole) ++count;
    if (order <= 0) ++h;
    if (order >= 0) ++r;
  }
  return count;
}

}  // namespace

double bleu4(std::string_view hypothesis, std::string_view reference) {
  require_scorable_size(hypothesis, "bleu4");
  require_scorable_size(reference, "bleu4");
  const std::vector<Window> h = sorted_windows(characters_of(hypothesis));
  const std::vector<Window> r = sorted_windows(characters_of(reference));
  double log_sum = 0;
  double unmatched_scale = 1;
  for (size_t n = 1; n <= kMaxOrder; ++n) {
    const auto matches = static_cast<double>(num_matches(h, r, n));
    if (n == 1 && matches == 0) return 0;
    const auto num_ngrams = static_cast<double>(h.size() < n ? 1 : h.size() - n + 1);
    if (matches == 0) unmatched_scale /= 2;
    log_sum += std::log((matches > 0 ? matches : unmatched_scale) / num_ngrams) / kMaxOrder;
  }
  const double length_ratio = static_cast<double>(r.size()) / static_cast<double>(h.size());
  const double brevity_penalty = length_ratio < 1 ? 1 : std::exp(1 - length_ratio);
  return brevity_penalty * std::exp(log_sum);
}

}  // namespace lora::eval
