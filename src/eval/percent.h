#pragma once

namespace lora::eval {

/// Python's round(100 * fraction, 4): the decimal number of four places that is nearest to the
/// product in double.
double percent(double fraction);

}  // namespace lora::eval
