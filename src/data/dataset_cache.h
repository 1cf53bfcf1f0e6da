#pragma once

#include <optional>
#include <string>

#include "lora/data/dataset.h"

namespace lora::data {

/// All that a source's tokens depend on, one line each.
std::string dataset_description(const Path& source, const std::string& source_digest, const DatasetOptions& options,
                                const Tokenizer* tokenizer);

/// The file of a cache directory that holds one source's tokens under one tokenizer and one set of options. Its name is
/// the digest of all of them, its content never changes, and it appears whole or not at all: runs can share a directory.
class DatasetCache {
 public:
  /// Nothing when these rows are not cached (see load_dataset). Throws IoError when the source cannot be read.
  static std::optional<DatasetCache> find(const Path& source, const DatasetOptions& options, const Tokenizer* tokenizer);

  /// The tokens, read where they lie; nothing when there are none yet. A file that is damaged is warned about.
  std::optional<Dataset> load() const;
  /// Keeps the tokens for the next time, unless the source has changed since find(). Warns when that is not possible.
  void save(const Dataset& dataset) const;

 private:
  DatasetCache(Path source, std::string source_digest, std::string key, const DatasetOptions& options);

  Path source_, directory_, file_;
  std::string source_digest_, key_;
  int64_t vocab_size_;
};

}  // namespace lora::data
