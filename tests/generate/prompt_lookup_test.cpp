#include "generate/prompt_lookup.h"

#include "catch.h"

using lora::generate::PromptLookup;
using Ids = std::vector<int64_t>;

TEST_CASE("a guess is what followed the last tokens before", "[generate]") {
  PromptLookup lookup;
  CHECK(lookup.guess({1, 2, 3, 4, 5, 1, 2}, 3) == Ids{3, 4, 5});
  CHECK(lookup.guess({1, 2, 3, 4, 5, 1, 2}, 1) == Ids{3});
  CHECK(lookup.guess({1, 2, 3, 4, 5, 1, 2}, 0).empty());
  CHECK(lookup.guess({1, 2, 3, 4, 5, 1, 2}, -1).empty());
  CHECK(lookup.guess({1, 2, 3, 4, 5}, 3).empty());
  CHECK(lookup.guess({4, 9, 4}, 3).empty());  // one token alone is no reason
  CHECK(lookup.guess({7}, 3).empty());
  CHECK(lookup.guess({7, 7}, 3).empty());
}

TEST_CASE("a longer match counts for more than a later one", "[generate]") {
  PromptLookup lookup;
  CHECK(lookup.guess({1, 2, 3, 10, 9, 2, 3, 20, 1, 2, 3}, 1) == Ids{10});
  CHECK(lookup.guess({5, 2, 3, 10, 9, 2, 3, 20, 1, 2, 3}, 1) == Ids{20});
}

TEST_CASE("a guess goes round a loop that is shorter than itself", "[generate]") {
  PromptLookup lookup;
  CHECK(lookup.guess({6, 6, 6}, 3) == Ids{6, 6, 6});
  CHECK(lookup.guess({1, 2, 1, 2}, 3) == Ids{1, 2, 1});
  CHECK(lookup.guess({8, 9, 1, 2, 1, 2}, 5) == Ids{1, 2, 1, 2, 1});  // and not on from the front
}

TEST_CASE("guesses that fail are made ever more rarely, until one is right", "[generate]") {
  PromptLookup lookup;
  const auto calls_until_guess = [&] {
    int calls = 1;
    while (lookup.guess({6, 6, 6}, 3).empty()) ++calls;
    return calls;
  };
  CHECK(calls_until_guess() == 1);
  std::vector<int> waits;
  for (int i = 0; i < 6; ++i) {
    lookup.learn(0);
    waits.push_back(calls_until_guess());
  }
  CHECK(waits == std::vector<int>{2, 3, 5, 9, 9, 9});
  lookup.learn(1);
  CHECK(calls_until_guess() == 1);
  lookup.learn(0);
  CHECK(calls_until_guess() == 2);
}
