#include "lora/eval/rouge.h"

#include <string>
#include <string_view>
#include <vector>

#include "eval/longest_common_subsequence.h"
#include "eval_fixture.h"
#include "lora/core/error.h"
#include "lora/eval/dict_segmenter.h"

using lora::eval::rouge;
using lora::eval::RougeScore;
using lora::testing::views_of;
using Tokens = std::vector<std::string_view>;

namespace {

void check_score(const RougeScore& score, const lora::formats::Json& expected) {
  CHECK(score.precision == expected["p"].get<double>());
  CHECK(score.recall == expected["r"].get<double>());
  CHECK(score.f == Approx(expected["f"].get<double>()).epsilon(0).margin(1e-15));
}

bool is_zero(const RougeScore& score) { return score.precision == 0 && score.recall == 0 && score.f == 0; }

}  // namespace

TEST_CASE("ROUGE on words is that of rouge_chinese", "[rouge]") {
  const lora::eval::DictSegmenter segmenter(lora::testing::eval_reference("dictionary.txt"));
  const auto rows = lora::testing::read_json(lora::testing::eval_reference("scores.json"));
  REQUIRE(rows.size() > 20);
  for (const auto& row : rows) {
    const auto prediction = row["prediction"].get<std::string>(), reference = row["reference"].get<std::string>();
    INFO(prediction << " | " << reference);
    Tokens hypothesis_tokens = segmenter.cut(prediction), reference_tokens = segmenter.cut(reference);
    std::erase(hypothesis_tokens, " ");
    std::erase(reference_tokens, " ");
    const auto scores = rouge(hypothesis_tokens, reference_tokens);
    check_score(scores.rouge_1, row["rouge"]["rouge-1"]);
    check_score(scores.rouge_2, row["rouge"]["rouge-2"]);
    check_score(scores.rouge_l, row["rouge"]["rouge-l"]);
  }
}

TEST_CASE("ROUGE by hand: sets of n-grams, but all tokens for the subsequence", "[rouge]") {
  const auto scores = rouge(Tokens{"a", "a", "b", "c"}, Tokens{"a", "c", "b", "a", "b"});
  CHECK(scores.rouge_1.precision == 1);
  CHECK(scores.rouge_1.recall == 1);
  CHECK(scores.rouge_1.f == 2 * (1 / (2 + 1e-8)));
  CHECK(scores.rouge_2.precision == 1. / 3);  // ab of {aa, ab, bc}
  CHECK(scores.rouge_2.recall == 1. / 4);     // of {ac, cb, ba, ab}
  CHECK(scores.rouge_l.precision == 3. / 4);  // aab
  CHECK(scores.rouge_l.recall == 3. / 5);
}

TEST_CASE("ROUGE is 0 where a side has no tokens, rouge-2 where it has one", "[rouge]") {
  for (const auto& [hypothesis, reference] :
       std::vector<std::pair<Tokens, Tokens>>{{{}, {}}, {{}, {"a"}}, {{"a"}, {}}, {{"a"}, {"b"}}}) {
    const auto scores = rouge(hypothesis, reference);
    CHECK(is_zero(scores.rouge_1));
    CHECK(is_zero(scores.rouge_2));
    CHECK(is_zero(scores.rouge_l));
  }
  const auto one = rouge(Tokens{"a"}, Tokens{"a"});
  CHECK(one.rouge_l.precision == 1);
  CHECK(is_zero(one.rouge_2));
}

TEST_CASE("rows beyond the limit of ROUGE-L are refused before any work", "[rouge]") {
  const Tokens many(1u << 17, "a");
  const std::string message =
      lora::testing::message_of<lora::DataError>([&] { rouge(many, Tokens(many.begin(), many.begin() + (1u << 15) + 1)); });
  CHECK(message.find("2^32") != std::string::npos);
  const auto allowed = rouge(Tokens(30'000, "a"), Tokens(20'000, "a"));
  CHECK(allowed.rouge_l.recall == 1);
}

TEST_CASE("the longest common subsequence is that of the table", "[rouge]") {
  using Ids = std::vector<uint32_t>;
  const auto by_table = [](const Ids& a, const Ids& b) {
    std::vector<std::vector<size_t>> table(a.size() + 1, std::vector<size_t>(b.size() + 1));
    for (size_t i = 0; i < a.size(); ++i) {
      for (size_t j = 0; j < b.size(); ++j) {
        table[i + 1][j + 1] = a[i] == b[j] ? table[i][j] + 1 : std::max(table[i][j + 1], table[i + 1][j]);
      }
    }
    return table[a.size()][b.size()];
  };
  uint32_t state = 1;
  const auto drawn = [&](size_t size, uint32_t num_symbols) {
    Ids ids(size);
    for (uint32_t& id : ids) id = ((state = state * 1664525u + 1013904223u) >> 8) % num_symbols;
    return ids;
  };
  for (const size_t size : {0, 1, 63, 64, 65, 127, 128, 129, 300}) {
    for (const uint32_t num_symbols : {1u, 2u, 5u, 50u}) {
      const Ids a = drawn(size, num_symbols), b = drawn(200, num_symbols);
      INFO(size << " " << num_symbols);
      CHECK(lora::eval::longest_common_subsequence(a, b, num_symbols) == by_table(a, b));
      CHECK(lora::eval::longest_common_subsequence(b, a, num_symbols) == by_table(a, b));
    }
  }
}
