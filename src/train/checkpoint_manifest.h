// Which files a checkpoint has, and whether they are whole.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "lora/core/path.h"

namespace lora::train {

constexpr const char* kManifest = "manifest.json";
constexpr const char* kState = "state.json";
constexpr const char* kAdapterWeights = "adapter/adapter_model.safetensors";
constexpr const char* kModel = "model.safetensors";
constexpr const char* kOptimizer = "optimizer.safetensors";
constexpr const char* kGenerator = "generator.safetensors";

struct FileRecord {
  uint64_t size = 0;
  std::string digest;
};

/// The manifest of all files that are in `directory`, written last.
void write_manifest(const Path& directory);

/// By path within the checkpoint. Throws IoError, FormatError.
std::map<std::string, FileRecord> read_manifest(const Path& checkpoint);

/// What is wrong with one file, or nothing.
std::optional<std::string> defect_of(const Path& file, const FileRecord& expected);

/// What is missing without which a checkpoint says nothing.
std::optional<std::string> missing_entry(const Path& checkpoint, const std::map<std::string, FileRecord>& files);

/// Whether there is more than values. Throws as read_manifest.
bool can_resume(const Path& checkpoint);

}  // namespace lora::train
