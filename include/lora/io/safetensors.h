#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "lora/core/path.h"
#include "lora/formats/safetensors.h"

namespace lora::io {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

/// A safetensors file, open for reading; the header is checked when opened, tensors are read on
/// demand. Copies share the open file, which stays readable when its path is replaced meanwhile.
/// (Tensors are read, not memory-mapped: a file cut short while in use is then an IoError, not a
/// SIGBUS.) Thread-safe.
class SafetensorsFile {
 public:
  /// Throws IoError (missing, unreadable) or FormatError (malformed).
  explicit SafetensorsFile(const Path& path);

  const formats::SafetensorsHeader& header() const;
  const Path& path() const;
  bool contains(const std::string& name) const;
  /// Shape and type of one tensor; throws FormatError when there is none of that name.
  const formats::TensorEntry& entry(const std::string& name) const;
  /// A copy of one tensor on the CPU, in the file's type. Throws FormatError, IoError.
  at::Tensor read(const std::string& name) const;
  /// Copies one tensor into `target`: same shape, any device; float values are converted to its
  /// float type, other types must be equal. Throws ShapeError naming both sides; FormatError,
  /// IoError.
  void read_into(const std::string& name, at::Tensor target) const;

 private:
  struct OpenFile;
  std::shared_ptr<const OpenFile> file_;
};

/// One tensor that a save will write; `read` is called once, when its turn comes, so that a whole
/// model never has to be in memory.
struct TensorSource {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::function<at::Tensor()> read;  ///< any device; converted to `dtype`
};

/// Writes all tensors to one file, streaming tensor by tensor, and syncs it to disk.
/// Metadata {"format": "pt"} is always added, since readers of the field ask for it.
/// Throws IoError; ShapeError for tensors that no file can hold, that differ from their announced
/// shape, or that share a name.
void save_safetensors(const Path& path, const std::vector<TensorSource>& tensors,
                      std::map<std::string, std::string> metadata = {});
/// The same for tensors in memory, in their own types.
void save_safetensors(const Path& path, const NamedTensors& tensors, std::map<std::string, std::string> metadata = {});

/// Every tensor of a file, by name. Throws IoError, FormatError.
std::map<std::string, at::Tensor> load_safetensors(const Path& path);

}  // namespace lora::io
