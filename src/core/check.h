// Throwing typed errors with formatted text; private, because public headers do not include fmt.
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <fmt/std.h>

#include <utility>

#include "lora/core/error.h"

namespace lora {

/// Throws E with a formatted message.
template <class E, class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> text, Args&&... args) {
  throw E(fmt::format(text, std::forward<Args>(args)...));
}

/// Throws E with a formatted message unless `holds`.
template <class E, class... Args>
void require(bool holds, fmt::format_string<Args...> text, Args&&... args) {
  if (!holds) throw E(fmt::format(text, std::forward<Args>(args)...));
}

}  // namespace lora
