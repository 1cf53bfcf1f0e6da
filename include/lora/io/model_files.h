#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "lora/core/path.h"
#include "lora/io/safetensors.h"

namespace lora::io {

/// The weights of a Hugging Face model directory: `model.safetensors`, or (when there is none)
/// shards with `model.safetensors.index.json`. Opened without reading any tensor.
class ModelFiles {
 public:
  /// Throws IoError when the directory has no weights (saying what it has instead), FormatError
  /// when the index and the shards disagree: a name not in its shard, a shard that is missing, a
  /// tensor in two shards. Tensors of a shard that the index does not list are left out with a
  /// warning.
  explicit ModelFiles(const Path& directory);

  /// Names in the order of the files, so that reading them one after another reads the disk
  /// forwards.
  const std::vector<std::string>& names() const { return names_; }
  bool contains(const std::string& name) const { return shard_of_.contains(name); }
  /// These throw FormatError when there is no tensor of that name; see SafetensorsFile.
  const formats::TensorEntry& entry(const std::string& name) const;
  at::Tensor read(const std::string& name) const;
  void read_into(const std::string& name, at::Tensor target) const;
  const Path& directory() const { return directory_; }

 private:
  void open_whole(const Path& file);
  void open_shards(const Path& index_file);
  const SafetensorsFile& shard(const std::string& name) const;

  Path directory_;
  std::vector<std::string> names_;
  std::vector<SafetensorsFile> shards_;
  std::map<std::string, size_t> shard_of_;
};

/// Writes `model.safetensors`, or `model-0000i-of-0000n.safetensors` with an index when the whole
/// exceeds `shard_bytes`, into an existing directory. A tensor is never split: one that is larger
/// than `shard_bytes` gets a shard of its own. Throws IoError, and ShapeError like
/// save_safetensors.
void save_model_files(const Path& directory, const std::vector<TensorSource>& tensors, uint64_t shard_bytes = 5'000'000'000);

}  // namespace lora::io
