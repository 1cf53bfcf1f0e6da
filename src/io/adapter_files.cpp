#include "lora/io/adapter_files.h"

#include <algorithm>
#include <system_error>

#include "core/check.h"
#include "lora/core/file.h"
#include "lora/core/log.h"
#include "lora/io/safetensors.h"

namespace lora::io {
namespace {

constexpr const char* kConfigFile = "adapter_config.json";
constexpr const char* kTensorFile = "adapter_model.safetensors";
constexpr const char* kHubTensorFile = "adapter.safetensors";  ///< of AdapterHub
constexpr const char* kPickleFiles[] = {"adapter_model.bin", "pytorch_adapter.bin"};
constexpr uint64_t kMaxConfigBytes = 16u << 20;

/// A key from outside must not break the line that names it.
std::string quoted_if_odd(const std::string& key) {
  const bool is_plain = std::ranges::all_of(key, [](unsigned char c) { return c > 0x20 && c != 0x7f; });
  return is_plain ? key : fmt::format("{:?}", key);
}

formats::ParsedPeftConfig parse_config(const Path& file) {
  return formats::parse_adapter_config(read_file(file, kMaxConfigBytes), file.string());
}

formats::AdapterConfig read_config(const Path& file) {
  const std::string where = file.string();
  formats::ParsedPeftConfig parsed = parse_config(file);
  if (!parsed.unknown_keys.empty()) {
    std::vector<std::string> keys;
    for (const auto& key : parsed.unknown_keys) keys.push_back(quoted_if_odd(key));
    log::warn(fmt::format("[{}] unknown keys are ignored: {}", where, fmt::join(keys, ", ")));
  }
  for (const std::string& warning : parsed.warnings) {
    log::warn(fmt::format("[{}] {}", where, warning));
  }
  return std::move(parsed.config);
}

Path tensor_file(const Path& directory) {
  std::error_code error;
  for (const char* name : {kTensorFile, kHubTensorFile}) {
    if (std::filesystem::exists(directory / name, error)) return directory / name;
  }
  for (const char* name : kPickleFiles) {
    require<IoError>(
        !std::filesystem::exists(directory / name, error),
        "[{}] an adapter must hold {}; found only the pickled {}, which can run code when read; save the adapter again "
        "as safetensors",
        directory.string(), kTensorFile, name);
  }
  fail<IoError>("[{}] an adapter must hold {}; found none; check the path", directory.string(), kTensorFile);
}

/// Links, or copies, everything but the adapter's own two files from `from` into `to`.
void keep_other_files(const Path& from, const Path& to) {
  using std::filesystem::copy_options;
  std::error_code error;
  if (!std::filesystem::is_directory(from, error)) return;
  for (std::filesystem::directory_iterator entry(from, error), end; !error && entry != end; entry.increment(error)) {
    const Path name = entry->path().filename();
    if (name == kConfigFile || name == kTensorFile) continue;
    constexpr auto kWhole = copy_options::recursive | copy_options::copy_symlinks;
    std::filesystem::copy(entry->path(), to / name, kWhole | copy_options::create_hard_links, error);
    // Not every file system has links.
    if (error) std::filesystem::copy(entry->path(), to / name, kWhole | copy_options::overwrite_existing, error);
    if (error) break;
  }
  require<IoError>(!error, "[{}] other files of the directory must be kept, which failed: {}", from.string(), error.message());
}

}  // namespace

formats::AdapterConfig read_adapter_config(const Path& directory) { return parse_config(directory / kConfigFile).config; }

AdapterFiles read_adapter_files(const Path& directory) {
  AdapterFiles files;
  files.config = read_config(directory / kConfigFile);
  files.tensors = load_safetensors(tensor_file(directory));
  return files;
}

void write_adapter_files(const Path& directory, const AdapterFiles& files) {
  AtomicDirectory complete(directory);
  save_safetensors(complete.path() / kTensorFile, NamedTensors(files.tensors.begin(), files.tensors.end()));
  write_file_atomically(complete.path() / kConfigFile, formats::write_adapter_config(files.config));
  keep_other_files(directory, complete.path());
  complete.commit();
}

}  // namespace lora::io
