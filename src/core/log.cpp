#include "lora/core/log.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdlib>
#include <memory>
#include <string>

#include "lora/core/text.h"

namespace lora::log {
namespace {

/// Information is printed as it is; everything else is named: `warning: ...`.
class Formatter : public spdlog::formatter {
 public:
  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& out) override {
    (message.level == spdlog::level::info ? plain_ : named_).format(message, out);
  }
  std::unique_ptr<spdlog::formatter> clone() const override { return std::make_unique<Formatter>(); }

 private:
  spdlog::pattern_formatter plain_{"%v"}, named_{"%^%l%$: %v"};
};

bool colour_is_unwanted() {
  const char* value = std::getenv("NO_COLOR");
  return value != nullptr && *value != '\0';
}

spdlog::logger& logger() {
  // Never destroyed: destructors of other static objects may still log.
  static auto* const instance = [] {
    const auto mode = colour_is_unwanted() ? spdlog::color_mode::never : spdlog::color_mode::automatic;
    auto sink = std::make_shared<spdlog::sinks::stderr_color_sink_mt>(mode);
    auto* created = new spdlog::logger("lora", std::move(sink));
    created->set_formatter(std::make_unique<Formatter>());
    created->set_level(spdlog::level::info);
    return created;
  }();
  return *instance;
}

spdlog::level::level_enum to_spdlog(Level level) {
  switch (level) {
    case Level::kError:
      return spdlog::level::err;
    case Level::kWarning:
      return spdlog::level::warn;
    case Level::kInfo:
      return spdlog::level::info;
    case Level::kDebug:
      return spdlog::level::debug;
  }
  return spdlog::level::info;
}

void write(Level level, std::string_view text) {
  const auto severity = to_spdlog(level);
  if (logger().should_log(severity)) logger().log(severity, escape_control(text));
}

}  // namespace

void set_level(Level level) { logger().set_level(to_spdlog(level)); }

Level level() {
  switch (logger().level()) {
    case spdlog::level::err:
      return Level::kError;
    case spdlog::level::warn:
      return Level::kWarning;
    case spdlog::level::debug:
      return Level::kDebug;
    default:
      return Level::kInfo;
  }
}

void error(std::string_view text) { write(Level::kError, text); }
void warn(std::string_view text) { write(Level::kWarning, text); }
void info(std::string_view text) { write(Level::kInfo, text); }
void debug(std::string_view text) { write(Level::kDebug, text); }

}  // namespace lora::log
