#include "eval/percent.h"

#include <array>
#include <charconv>

namespace lora::eval {

double percent(double fraction) {
  // Multiplying by 10^4 and rounding would round twice: 98.15915 is a double below the tie, and
  // times 10^4 it is the tie.
  std::array<char, 400> digits{};  // the largest double has 309 digits before the point
  const auto written = std::to_chars(digits.data(), digits.data() + digits.size(), fraction * 100, std::chars_format::fixed, 4);
  double rounded = 0;
  std::from_chars(digits.data(), written.ptr, rounded);
  return rounded;
}

}  // namespace lora::eval
