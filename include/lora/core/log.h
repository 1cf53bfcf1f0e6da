#pragma once

#include <string_view>

namespace lora::log {

/// How much is said; each level includes those before it.
enum class Level { kError, kWarning, kInfo, kDebug };

/// Sets the last level that is shown; kInfo at the start. Logs go to stderr, one write per message;
/// colour only on a terminal and without NO_COLOR. Control characters are shown escaped.
void set_level(Level level);
Level level();

/// Printed as `error: text`.
void error(std::string_view text);
/// Printed as `warning: text`.
void warn(std::string_view text);
/// Printed as it is.
void info(std::string_view text);
/// Printed as `debug: text`.
void debug(std::string_view text);

}  // namespace lora::log
