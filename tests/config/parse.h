// Run files of the tests.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "lora/config/run_config.h"
#include "lora/core/error.h"

/// The keys that every run file needs; five lines, so that an added line is line 6.
inline const std::string kMinimal =
    "run: {output_dir: out}\n"
    "model: {path: base}\n"
    "data:\n"
    "  format: alpaca\n"
    "  train: {path: train.json}\n";

inline lora::config::RunConfig parse(std::string_view text, const std::vector<std::string>& overrides = {},
                                     std::string_view command = "finetune") {
  return lora::config::parse_run_config(text, "run.yaml", "/runs/a", overrides, "/cwd", command);
}

/// The message of the ConfigError that parsing throws; empty when it does not.
inline std::string error_of(std::string_view text, const std::vector<std::string>& overrides = {},
                            std::string_view command = "finetune") {
  try {
    parse(text, overrides, command);
  } catch (const lora::ConfigError& error) {
    return error.what();
  }
  return "";
}
