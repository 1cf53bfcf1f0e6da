#include "train/checkpoint_manifest.h"

#include <algorithm>

#include "train/checkpoint_json.h"

namespace lora::train {
namespace {

namespace fs = std::filesystem;
using formats::Json;

bool stays_inside(const Path& path) {
  return !path.empty() && path.is_relative() && std::ranges::none_of(path, [](const Path& part) { return part == ".."; });
}

Json manifest_json(const Path& directory) {
  Json files = Json::object();
  for (const auto& entry : fs::recursive_directory_iterator(directory)) {
    if (!entry.is_regular_file()) continue;
    files[entry.path().lexically_relative(directory).generic_string()] = {{"size", entry.file_size()},
                                                                          {"digest", file_digest(entry.path())}};
  }
  return {{"format", kCheckpointFormat}, {"files", files}};
}

}  // namespace

void write_manifest(const Path& directory) {
  // No newline at its end, so that a manifest cut short anywhere is no JSON.
  write_file_atomically(directory / kManifest, manifest_json(directory).dump(2));
}

std::map<std::string, FileRecord> read_manifest(const Path& checkpoint) {
  const Path path = checkpoint / kManifest;
  const Json json = read_json(path);
  require_format(json, path);
  std::map<std::string, FileRecord> files;
  for (const auto& [name, record] : member<Json::object_t>(json, "files", path)) {
    require<FormatError>(stays_inside(name), "[{}] files must lie in the checkpoint; found {:?}; use another checkpoint",
                         path.string(), name);
    files[name] = {member<uint64_t>(record, "size", path), member<std::string>(record, "digest", path)};
  }
  return files;
}

std::optional<std::string> defect_of(const Path& file, const FileRecord& expected) {
  std::error_code error;
  const auto size = fs::file_size(file, error);
  if (error) return fmt::format("[{}] must exist; {}", file.string(), error.message());
  if (size != expected.size) {
    return fmt::format("[{}] must have {} bytes; found {}", file.string(), expected.size, size);
  }
  const std::string digest = file_digest(file);
  if (digest == expected.digest) return std::nullopt;
  return fmt::format("[{}] must have the digest {}; found {}", file.string(), expected.digest, digest);
}

std::optional<std::string> missing_entry(const Path& checkpoint, const std::map<std::string, FileRecord>& files) {
  if (!files.contains(kState)) {
    return fmt::format("[{}] must list {}", (checkpoint / kManifest).string(), kState);
  }
  if (!files.contains(kModel) && !files.contains(kAdapterWeights)) {
    return fmt::format("[{}] must list {} or {}", (checkpoint / kManifest).string(), kModel, kAdapterWeights);
  }
  return std::nullopt;
}

bool can_resume(const Path& checkpoint) {
  const auto files = read_manifest(checkpoint);
  return files.contains(kOptimizer) && files.contains(kGenerator);
}

}  // namespace lora::train
