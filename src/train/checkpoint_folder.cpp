#include "train/checkpoint_folder.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>

#include "lora/core/log.h"

namespace lora::train {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "step-";

/// N of a directory named step-N.
std::optional<int64_t> step_of_name(const Path& path) {
  const std::string name = path.filename().string();
  if (!name.starts_with(kPrefix)) return std::nullopt;
  int64_t step = 0;
  const char* end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(name.data() + kPrefix.size(), end, step);
  if (error != std::errc() || stop != end || step < 0) return std::nullopt;
  return step;
}

/// Removes a checkpoint so that a half-removed one is never seen: it loses its name first.
void remove_checkpoint(const Path& checkpoint) {
  Path doomed = checkpoint;
  doomed += fmt::format(".tmp-{}-0", ::getpid());
  std::error_code error;
  fs::remove_all(doomed, error);
  fs::rename(checkpoint, doomed, error);
  if (!error) fs::remove_all(doomed, error);
  if (error) {
    log::warn(fmt::format("[{}] an old checkpoint should go; {}; remove it by hand", checkpoint.string(), error.message()));
  }
}

}  // namespace

Path checkpoint_path(const Path& folder, int64_t step) { return folder / fmt::format("{}{}", kPrefix, step); }

std::vector<std::pair<int64_t, Path>> checkpoints_in(const Path& folder) {
  std::vector<std::pair<int64_t, Path>> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const auto step = step_of_name(entry.path());
    if (step && entry.is_directory(error)) found.emplace_back(*step, entry.path());
  }
  std::ranges::sort(found, std::greater<>());
  return found;
}

void prune(const Path& folder, int64_t current, int64_t keep) {
  int64_t kept = 1;
  for (const auto& [step, path] : checkpoints_in(folder)) {
    if (step == current) continue;
    if (step < current && kept < keep) {
      ++kept;
    } else {
      remove_checkpoint(path);
    }
  }
}

}  // namespace lora::train
