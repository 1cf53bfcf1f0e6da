// The reference numbers of tests/reference/make_eval_reference.py, and what reads them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "formats/json.h"
#include "lora/core/file.h"
#include "support.h"

namespace lora::testing {

inline Path eval_reference(std::string_view name) { return reference_folder() / "eval" / name; }

inline formats::Json read_json(const Path& path) { return formats::parse_json(read_file(path), path.string()); }

/// Tokens that stay where the JSON value is.
inline std::vector<std::string_view> views_of(const formats::Json& tokens) {
  std::vector<std::string_view> views;
  for (const formats::Json& token : tokens) views.emplace_back(token.get_ref<const std::string&>());
  return views;
}

/// Copies, for comparing.
inline std::vector<std::string> strings_of(const std::vector<std::string_view>& tokens) { return {tokens.begin(), tokens.end()}; }

}  // namespace lora::testing
