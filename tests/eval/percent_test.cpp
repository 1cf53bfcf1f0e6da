#include "eval/percent.h"

#include <utility>
#include <vector>

#include "catch.h"

TEST_CASE("percent rounds as Python's round(100 * x, 4)", "[metric]") {
  // python3: [(x, round(x * 100, 4)) for x in (...)]; the products are the doubles next to ties,
  // and exact ties.
  const std::vector<std::pair<double, double>> cases = {{0.0, 0.0},
                                                        {1.0, 100.0},
                                                        {0.12345649, 12.3456},
                                                        {0.12345651, 12.3457},
                                                        {0.000000499, 0.0},
                                                        {0.000000501, 0.0001},
                                                        {1.0 / 3, 33.3333},
                                                        {2.0 / 3, 66.6667},
                                                        {-0.12345651, -12.3457},
                                                        {0.9815915, 98.1591},
                                                        {0.4892445, 48.9245},
                                                        {0.0711955, 7.1195},
                                                        {0.0003125, 0.0312},
                                                        {0.0009375, 0.0938},
                                                        {0.0015625, 0.1562},
                                                        {0.06640625, 6.6406}};
  for (const auto& [fraction, expected] : cases) {
    INFO(fraction);
    CHECK(lora::eval::percent(fraction) == expected);
  }
  CHECK(lora::eval::percent(1e306) == 1e308);
}
