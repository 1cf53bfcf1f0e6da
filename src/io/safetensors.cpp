#include "lora/io/safetensors.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <unordered_map>

#include "core/check.h"
#include "lora/core/file.h"
#include "lora/io/dtype.h"

static_assert(std::endian::native == std::endian::little, "tensor files are little-endian");

namespace lora::io {
namespace {

/// An open descriptor of a regular file. Reads carry their own offset, so threads can share it.
class ReadableFile {
 public:
  explicit ReadableFile(const Path& path) : path_(path), descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
    require<IoError>(descriptor_ >= 0, "[{}] the file must be readable; {}", path.string(), std::strerror(errno));
    struct stat status {};
    const bool known = ::fstat(descriptor_, &status) == 0;
    if (!known || !S_ISREG(status.st_mode)) {
      ::close(descriptor_);
      fail<IoError>("[{}] must be a regular file", path.string());
    }
    size_ = static_cast<uint64_t>(status.st_size);
    changed_ = status.st_mtim;
  }
  ~ReadableFile() { ::close(descriptor_); }
  ReadableFile(const ReadableFile&) = delete;
  ReadableFile& operator=(const ReadableFile&) = delete;

  const Path& path() const { return path_; }
  uint64_t size() const { return size_; }

  /// A file that others write to while it is open gives values of which nobody knows what they are.
  void require_unchanged() const {
    struct stat status {};
    const bool known = ::fstat(descriptor_, &status) == 0;
    require<IoError>(known && static_cast<uint64_t>(status.st_size) == size_ && status.st_mtim.tv_sec == changed_.tv_sec &&
                         status.st_mtim.tv_nsec == changed_.tv_nsec,
                     "[{}] must not change while in use; it was written to; start again with a file that stays as it is",
                     path_.string());
  }

  void read(void* target, uint64_t size, uint64_t offset) const {
    auto* out = static_cast<std::byte*>(target);
    while (size > 0) {
      const ssize_t count = ::pread(descriptor_, out, size, static_cast<off_t>(offset));
      if (count < 0 && errno == EINTR) continue;
      require<IoError>(count >= 0, "[{}] must be readable; reading at byte {} failed: {}", path_.string(), offset,
                       std::strerror(errno));
      require<IoError>(count > 0, "[{}] must not change while in use; it now ends at byte {}", path_.string(), offset);
      out += count;
      offset += static_cast<uint64_t>(count);
      size -= static_cast<uint64_t>(count);
    }
  }

 private:
  Path path_;
  int descriptor_;
  uint64_t size_ = 0;
  timespec changed_ = {};
};

formats::SafetensorsHeader read_header(const ReadableFile& file) {
  const std::string where = file.path().string();
  std::vector<std::byte> head(std::min<uint64_t>(8, file.size()));
  file.read(head.data(), head.size(), 0);
  const uint64_t length = formats::safetensors_header_length(head, file.size(), where);
  head.resize(std::min(8 + length, file.size()));
  file.read(head.data() + 8, head.size() - 8, 8);
  return formats::parse_safetensors_header(head, file.size(), where);
}

at::Tensor allocate(const formats::TensorEntry& entry, c10::ScalarType type, const Path& path) {
  try {
    return at::empty(entry.shape, type);
  } catch (const c10::Error&) {
    fail<FormatError>("[{}] tensors must fit into memory; {} has shape [{}] and {} bytes", path.string(), entry.name,
                      fmt::join(entry.shape, ", "), entry.end - entry.begin);
  }
}

std::string describe(c10::IntArrayRef shape, c10::ScalarType type) {
  return fmt::format("[{}] {}", fmt::join(shape, ", "), c10::toString(type));
}

/// The tensor of `source` as contiguous bytes of the announced type.
at::Tensor bytes_of(const TensorSource& source, const Path& path) {
  const at::Tensor tensor = source.read();
  require<ShapeError>(tensor.defined() && tensor.layout() == c10::kStrided, "[{}] tensors to be saved must be dense; {} is not",
                      path.string(), source.name);
  require<ShapeError>(tensor.sizes() == c10::IntArrayRef(source.shape),
                      "[{}] tensors must keep the shape that the file announces; {} has [{}] instead of [{}]", path.string(),
                      source.name, fmt::join(tensor.sizes(), ", "), fmt::join(source.shape, ", "));
  return tensor.detach().to(c10::kCPU, to_torch(source.dtype, path.string())).resolve_conj().resolve_neg().contiguous();
}

std::unordered_map<std::string, const TensorSource*> by_name(const std::vector<TensorSource>& tensors, const Path& path) {
  std::unordered_map<std::string, const TensorSource*> sources;
  for (const TensorSource& source : tensors) {
    require<ShapeError>(sources.emplace(source.name, &source).second, "[{}] tensor names must be unique; {} appears twice",
                        path.string(), source.name);
  }
  return sources;
}

}  // namespace

struct SafetensorsFile::OpenFile {
  explicit OpenFile(const Path& path) : file(path), header(read_header(file)) {
    for (const formats::TensorEntry& entry : header.tensors) entries.emplace(entry.name, &entry);
  }

  void read(const formats::TensorEntry& entry, void* target) const {
    file.read(target, entry.end - entry.begin, header.data_start + entry.begin);
    file.require_unchanged();
  }

  /// Through a piece of the file at a time, small enough to be converted where it was read.
  void read_converted(const formats::TensorEntry& entry, c10::ScalarType type, const at::Tensor& target) const {
    const at::Tensor flat = target.view(-1);
    const int64_t piece = std::min(at::internal::GRAIN_SIZE, flat.numel());
    const at::Tensor values = at::empty({piece}, type);
    for (int64_t begin = 0; begin < flat.numel(); begin += piece) {
      const int64_t count = std::min(piece, flat.numel() - begin);
      const uint64_t item = c10::elementSize(type);
      file.read(values.data_ptr(), static_cast<uint64_t>(count) * item,
                header.data_start + entry.begin + static_cast<uint64_t>(begin) * item);
      flat.narrow(0, begin, count).copy_(values.narrow(0, 0, count));
    }
    file.require_unchanged();
  }

  ReadableFile file;
  formats::SafetensorsHeader header;
  std::unordered_map<std::string, const formats::TensorEntry*> entries;
};

SafetensorsFile::SafetensorsFile(const Path& path) : file_(std::make_shared<OpenFile>(path)) {}

const formats::SafetensorsHeader& SafetensorsFile::header() const { return file_->header; }

const Path& SafetensorsFile::path() const { return file_->file.path(); }

bool SafetensorsFile::contains(const std::string& name) const { return file_->entries.contains(name); }

const formats::TensorEntry& SafetensorsFile::entry(const std::string& name) const {
  const auto found = file_->entries.find(name);
  require<FormatError>(found != file_->entries.end(), "[{}] must hold the tensor {}; it does not", path().string(), name);
  return *found->second;
}

at::Tensor SafetensorsFile::read(const std::string& name) const {
  const formats::TensorEntry& found = entry(name);
  const c10::ScalarType type = to_torch(found.dtype, path().string());
  // A bool of torch may only be 0 or 1; a file's byte can be anything.
  const bool is_bool = type == c10::kBool;
  const at::Tensor tensor = allocate(found, is_bool ? c10::kByte : type, path());
  file_->read(found, tensor.data_ptr());
  return is_bool ? tensor.to(c10::kBool) : tensor;
}

void SafetensorsFile::read_into(const std::string& name, at::Tensor target) const {
  const formats::TensorEntry& found = entry(name);
  const c10::ScalarType type = to_torch(found.dtype, path().string());
  const bool same_type = type == target.scalar_type();
  const bool fits = target.sizes() == c10::IntArrayRef(found.shape) &&
                    (same_type || (c10::isFloatingType(type) && c10::isFloatingType(target.scalar_type())));
  require<ShapeError>(fits, "[{}] {} must fit the tensor it is loaded into; the file has {}, expected {}", path().string(), name,
                      describe(found.shape, type), describe(target.sizes(), target.scalar_type()));
  const c10::NoGradGuard no_grad;
  const bool in_place = type != c10::kBool && target.is_cpu() && target.is_contiguous();
  if (in_place && same_type) {
    file_->read(found, target.data_ptr());
  } else if (in_place) {
    file_->read_converted(found, type, target);
  } else {
    target.copy_(read(name));
  }
}

void save_safetensors(const Path& path, const std::vector<TensorSource>& tensors, std::map<std::string, std::string> metadata) {
  const auto sources = by_name(tensors, path);
  std::vector<formats::TensorEntry> entries;
  entries.reserve(tensors.size());
  for (const TensorSource& source : tensors) {
    entries.push_back({.name = source.name, .dtype = source.dtype, .shape = source.shape});
  }
  metadata["format"] = "pt";
  OutputFile file(path);
  file.write(formats::write_safetensors_header(entries, metadata));
  for (const formats::TensorEntry& entry : entries) {
    const at::Tensor bytes = bytes_of(*sources.at(entry.name), path);
    file.write(bytes.data_ptr(), bytes.nbytes());
  }
  file.commit();
}

void save_safetensors(const Path& path, const NamedTensors& tensors, std::map<std::string, std::string> metadata) {
  std::vector<TensorSource> sources;
  sources.reserve(tensors.size());
  for (const auto& [name, tensor] : tensors) {
    require<ShapeError>(tensor.defined(), "[{}] tensors to be saved must be defined; {} is not", path.string(), name);
    sources.push_back(
        {.name = name, .dtype = from_torch(tensor.scalar_type()), .shape = tensor.sizes().vec(), .read = [&tensor = tensor] {
           return tensor;
         }});
  }
  save_safetensors(path, sources, std::move(metadata));
}

std::map<std::string, at::Tensor> load_safetensors(const Path& path) {
  const SafetensorsFile file(path);
  std::map<std::string, at::Tensor> tensors;
  for (const formats::TensorEntry& entry : file.header().tensors) {
    tensors.emplace(entry.name, file.read(entry.name));
  }
  return tensors;
}

}  // namespace lora::io
