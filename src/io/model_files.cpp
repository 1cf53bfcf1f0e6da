#include "lora/io/model_files.h"

#include <algorithm>
#include <set>
#include <system_error>

#include "core/check.h"
#include "formats/json.h"
#include "io/weight_files.h"
#include "lora/core/file.h"
#include "lora/core/log.h"

namespace lora::io {
namespace {

constexpr const char* kWholeFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr uint64_t kMaxIndexBytes = 256u << 20;

/// Weight files of other formats, to say what a directory has instead.
std::vector<std::string> other_weights(const Path& directory) {
  std::vector<std::string> found;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(directory, error), end; !error && entry != end; entry.increment(error)) {
    const std::string extension = entry->path().extension().string();
    const bool is_weights = extension == ".bin" || extension == ".pth" || extension == ".pt" || extension == ".ckpt" ||
                            extension == ".gguf" || extension == ".safetensors";
    if (is_weights) found.push_back(entry->path().filename().string());
  }
  std::sort(found.begin(), found.end());
  if (found.size() > 5) found.resize(5);
  return found;
}

[[noreturn]] void fail_without_weights(const Path& directory) {
  const std::vector<std::string> found = other_weights(directory);
  fail<IoError>("[{}] a model directory must hold {} or {}; found {}; convert the weights to safetensors", directory.string(),
                kWholeFile, kIndexFile, found.empty() ? "no weights" : fmt::format("only {}", fmt::join(found, ", ")));
}

uint64_t count_of(const TensorSource& tensor) {
  uint64_t count = 1;
  for (const int64_t dim : tensor.shape) count *= static_cast<uint64_t>(dim);
  return count;
}

uint64_t byte_size(const TensorSource& tensor) { return count_of(tensor) * bits_of(tensor.dtype) / 8; }

/// Consecutive runs of `tensors`, each of at most `shard_bytes` unless one tensor alone is larger.
std::vector<std::vector<TensorSource>> cut_into_shards(const std::vector<TensorSource>& tensors, uint64_t shard_bytes) {
  std::vector<std::vector<TensorSource>> shards(1);
  uint64_t used = 0;
  for (const TensorSource& tensor : tensors) {
    const uint64_t size = byte_size(tensor);
    if (used > 0 && used + size > shard_bytes) {
      shards.emplace_back();
      used = 0;
    }
    shards.back().push_back(tensor);
    used += size;
  }
  return shards;
}

std::string index_text(const std::vector<std::vector<TensorSource>>& shards, const std::vector<std::string>& file_names) {
  uint64_t total_size = 0;
  uint64_t total_parameters = 0;
  formats::Json weight_map = formats::Json::object();
  for (size_t i = 0; i < shards.size(); ++i) {
    for (const TensorSource& tensor : shards[i]) {
      total_size += byte_size(tensor);
      total_parameters += count_of(tensor);
      const bool is_new = weight_map.emplace(tensor.name, file_names[i]).second;
      require<ShapeError>(is_new, "[{}] tensor names must be unique; {} appears twice", kIndexFile, tensor.name);
    }
  }
  const formats::Json index = {{"metadata", {{"total_parameters", total_parameters}, {"total_size", total_size}}},
                               {"weight_map", std::move(weight_map)}};
  return index.dump(2) + "\n";
}

}  // namespace

bool has_weight_files(const Path& directory) {
  std::error_code error;
  return std::filesystem::exists(directory / kWholeFile, error) || std::filesystem::exists(directory / kIndexFile, error);
}

ModelFiles::ModelFiles(const Path& directory) : directory_(directory) {
  std::error_code error;
  require<IoError>(std::filesystem::is_directory(directory, error),
                   "[{}] the model must be a directory; it is none or does not exist", directory.string());
  if (std::filesystem::exists(directory / kWholeFile, error)) {
    open_whole(directory / kWholeFile);
  } else if (std::filesystem::exists(directory / kIndexFile, error)) {
    open_shards(directory / kIndexFile);
  } else {
    fail_without_weights(directory);
  }
}

void ModelFiles::open_whole(const Path& file) {
  shards_.emplace_back(file);
  for (const formats::TensorEntry& entry : shards_.front().header().tensors) {
    names_.push_back(entry.name);
    shard_of_.emplace(entry.name, 0);
  }
}

void ModelFiles::open_shards(const Path& index_file) {
  const std::string where = index_file.string();
  const auto file_of = formats::parse_safetensors_index(read_file(index_file, kMaxIndexBytes), where);
  std::set<std::string> file_names;
  for (const auto& [name, file] : file_of) file_names.insert(file);

  size_t num_unlisted = 0;
  for (const std::string& file : file_names) {
    std::error_code error;
    require<FormatError>(std::filesystem::exists(directory_ / file, error),
                         "[{}] every shard must exist; {} does not; fetch it again", where, file);
    const SafetensorsFile& shard = shards_.emplace_back(directory_ / file);
    for (const formats::TensorEntry& entry : shard.header().tensors) {
      const auto listed = file_of.find(entry.name);
      if (listed == file_of.end()) {
        ++num_unlisted;
        continue;
      }
      require<FormatError>(listed->second == file, "[{}] a tensor must be in one shard only; {} is in {}, listed in {}", where,
                           entry.name, file, listed->second);
      names_.push_back(entry.name);
      shard_of_.emplace(entry.name, shards_.size() - 1);
    }
  }
  for (const auto& [name, file] : file_of) {
    require<FormatError>(shard_of_.contains(name), "[{}] every listed tensor must be in its shard; {} is not in {}", where, name,
                         file);
  }
  if (num_unlisted > 0) {
    log::warn(fmt::format("[{}] {} tensors of the shards are not listed and left out", where, num_unlisted));
  }
}

const SafetensorsFile& ModelFiles::shard(const std::string& name) const {
  const auto found = shard_of_.find(name);
  require<FormatError>(found != shard_of_.end(), "[{}] the weights must hold {}; they do not", directory_.string(), name);
  return shards_[found->second];
}

const formats::TensorEntry& ModelFiles::entry(const std::string& name) const { return shard(name).entry(name); }

at::Tensor ModelFiles::read(const std::string& name) const { return shard(name).read(name); }

void ModelFiles::read_into(const std::string& name, at::Tensor target) const { shard(name).read_into(name, std::move(target)); }

void save_model_files(const Path& directory, const std::vector<TensorSource>& tensors, uint64_t shard_bytes) {
  const auto shards = cut_into_shards(tensors, shard_bytes);
  if (shards.size() == 1) {
    save_safetensors(directory / kWholeFile, shards.front());
    return;
  }
  std::vector<std::string> file_names;
  for (size_t i = 0; i < shards.size(); ++i) {
    file_names.push_back(fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size()));
  }
  const std::string index = index_text(shards, file_names);
  for (size_t i = 0; i < shards.size(); ++i) {
    save_safetensors(directory / file_names[i], shards[i]);
  }
  write_file_atomically(directory / kIndexFile, index);
}

}  // namespace lora::io
