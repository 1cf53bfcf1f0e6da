// Throwing typed errors with formatted text; private, because public headers do not include fmt.
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <fmt/std.h>

#include <concepts>
#include <ranges>
#include <string>
#include <string_view>
#include <vector>

#include "lora/core/error.h"
#include "lora/core/text.h"

namespace lora {
namespace detail {

template <class T>
concept Text = std::convertible_to<const T&, std::string_view>;

template <class T>
concept Texts = std::ranges::input_range<const T> && Text<std::ranges::range_value_t<const T>>;

/// Text from outside may hold any bytes. Where spdlog carries a copy of an older fmt, that copy can
/// be the one that runs, and it ends the process when {:?} or a range escapes text that is not
/// UTF-8.
template <Text T>
std::string as_utf8(const T& text) {
  return to_utf8(text);
}
template <Texts T>
requires(!Text<T>) std::vector<std::string> as_utf8(const T& texts) {
  std::vector<std::string> result;
  for (const auto& text : texts) result.push_back(to_utf8(text));
  return result;
}
template <class T>
const T& as_utf8(const T& value) {
  return value;
}

template <class... Args>
std::string format_values(fmt::string_view text, const Args&... args) {
  return fmt::vformat(text, fmt::make_format_args(args...));
}

}  // namespace detail

/// Throws E with a formatted message.
template <class E, class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> text, Args&&... args) {
  throw E(detail::format_values(text, detail::as_utf8(args)...));
}

/// Throws E with a formatted message unless `holds`.
template <class E, class... Args>
void require(bool holds, fmt::format_string<Args...> text, Args&&... args) {
  if (!holds) throw E(detail::format_values(text, detail::as_utf8(args)...));
}

}  // namespace lora
