#include "lora/eval/bleu.h"

#include <cmath>
#include <string>

#include "eval_fixture.h"
#include "lora/core/error.h"

using lora::eval::bleu4;
using lora::testing::message_of;

TEST_CASE("BLEU-4 on characters is that of nltk with smoothing method 3", "[bleu]") {
  const auto rows = lora::testing::read_json(lora::testing::eval_reference("scores.json"));
  REQUIRE(rows.size() > 20);
  for (const auto& row : rows) {
    const auto prediction = row["prediction"].get<std::string>(), reference = row["reference"].get<std::string>();
    INFO(prediction << " | " << reference);
    CHECK(bleu4(prediction, reference) == Approx(row["bleu"].get<double>()).epsilon(0).margin(1e-14));
  }
}

TEST_CASE("BLEU-4 by hand", "[bleu]") {
  // abcd against abxd: 3 of 4 characters, 1 of 3 pairs; triples and fours are missed first and
  // second.
  const double expected = std::pow(3. / 4 * (1. / 3) * (1. / 2 / 2) * (1. / 4 / 1), 0.25);
  CHECK(bleu4("abcd", "abxd") == Approx(expected).epsilon(1e-14));
  // A hypothesis of half the length is punished by exp(1 - 2); it has no triple and no four.
  const double halved = std::exp(-1.) * std::pow(1. * 1 * (1. / 2) * (1. / 4), 0.25);
  CHECK(bleu4("ab", "abcd") == Approx(halved).epsilon(1e-14));
  CHECK(bleu4("abcd", "abcd") == Approx(1).epsilon(1e-15));
}

TEST_CASE("BLEU-4 is 0 for an empty text and where no character matches", "[bleu]") {
  CHECK(bleu4("", "") == 0);
  CHECK(bleu4("", "reference") == 0);
  CHECK(bleu4("hypothesis", "") == 0);
  CHECK(bleu4("abc", "xyz") == 0);
}

TEST_CASE("bytes that are not UTF-8 count as U+FFFD each", "[bleu]") {
  const std::string replacement = "\xEF\xBF\xBD";
  CHECK(bleu4("a\xFF\xE2\x82", "a" + replacement + replacement + replacement) == Approx(1).epsilon(1e-15));
  CHECK(bleu4("\xF0\x9F\x98", "x") == 0);
  CHECK(bleu4(std::string("a\0b\0c", 5), std::string("a\0b\0c", 5)) == Approx(1).epsilon(1e-15));
}

TEST_CASE("texts of millions of characters take no quadratic time, longer ones are refused", "[bleu]") {
  const std::string same(3'000'000, 'x');
  CHECK(bleu4(same, same) == Approx(1).epsilon(1e-9));
  const std::string longer((4u << 20) + 1, 'x');
  CHECK(message_of<lora::DataError>([&] { bleu4(longer, "x"); }).find("4194304") != std::string::npos);
  CHECK_THROWS_AS(bleu4("x", longer), lora::DataError);
}
