#include "data/dataset_cache.h"

#include <mutex>
#include <set>
#include <system_error>
#include <utility>

#include "core/check.h"
#include "data/row_reader.h"
#include "lora/core/file.h"
#include "lora/core/log.h"
#include "lora/data/format_registry.h"

namespace lora::data {
namespace {

/// To be raised when rows come out of the encoders differently than before.
constexpr int kEncodingVersion = 2;

/// A text that no other one and no missing one looks like.
std::string unmistakable(const std::optional<std::string>& text) {
  return text ? fmt::format("{} {}", text->size(), *text) : "none";
}

/// A registered format is known by the version that its program gives.
std::string format_text(const std::string& name) {
  const DataFormat* registered = find_data_format(name);
  return registered == nullptr ? name : fmt::format("registered {} {}", unmistakable(name), unmistakable(registered->version));
}

/// A directory that cannot be written is worth one warning, however many data sets there are.
bool is_first_warning(const Path& directory) {
  static std::mutex mutex;
  static std::set<Path> warned;
  const std::lock_guard lock(mutex);
  return warned.insert(directory).second;
}

/// Reasons open with the source's name, which may be another one next time: it is left out in the file.
std::string without_name(const std::string& reason, const std::string& name) {
  const std::string opening = fmt::format("[{}", name);
  return reason.starts_with(opening) ? reason.substr(opening.size()) : reason;
}

}  // namespace

std::string dataset_description(const Path& source, const std::string& source_digest, const DatasetOptions& options,
                                const Tokenizer* tokenizer) {
  const std::string text = fmt::format(
      "encoding {}\nsource {}\njson {}\ntokenizer {}\nformat {}\nsource length {}\ntarget length {}\nlength {}\n"
      "truncate {}\nskip {}\nvocabulary {}\nprompt {}\nresponse {}\ntexts {}\n"
      "sop {}\npad {}\ntemplate {}\n",
      kEncodingVersion, source_digest, is_json_file(source), tokenizer == nullptr ? "none" : tokenizer->fingerprint(),
      format_text(options.format), options.max_source_length, options.max_target_length, options.max_length,
      options.truncate_long, options.skip_bad_rows, options.vocab_size, unmistakable(options.prompt_column),
      unmistakable(options.response_column), options.keep_text_pairs, options.train_on_sop, options.ignore_pad_in_loss,
      options.prompt_template ? formats::template_description(*options.prompt_template) : "of the model");
  return options.answers_optional ? text + "answers optional\n" : text;
}

std::optional<DatasetCache> DatasetCache::find(const Path& source, const DatasetOptions& options, const Tokenizer* tokenizer) {
  std::error_code unreachable;
  const bool is_known = tokenizer == nullptr || !tokenizer->fingerprint().empty();
  if (!options.cache_dir || !is_known || !std::filesystem::is_regular_file(source, unreachable)) {
    return std::nullopt;
  }
  std::string source_digest = file_digest(source);
  const std::string text = dataset_description(source, source_digest, options, tokenizer);
  return DatasetCache(source, std::move(source_digest), digest(std::as_bytes(std::span(text))), options);
}

DatasetCache::DatasetCache(Path source, std::string source_digest, std::string key, const DatasetOptions& options)
    : source_(std::move(source)),
      directory_(*options.cache_dir),
      file_(directory_ / (key + ".tokens")),
      source_digest_(std::move(source_digest)),
      key_(std::move(key)),
      vocab_size_(options.vocab_size) {}

std::optional<Dataset> DatasetCache::load() const {
  std::error_code unreachable;
  if (!std::filesystem::exists(file_, unreachable)) return std::nullopt;
  try {
    auto file = std::make_shared<const MappedFile>(file_);
    auto cache = formats::parse_token_cache(file->bytes(), key_, vocab_size_, file_.string());
    for (std::string& reason : cache.bad_row_reasons) {
      reason = fmt::format("[{}{}", source_.string(), reason);
    }
    Dataset dataset(std::move(file), std::move(cache));
    dataset.cache_file = file_;
    return dataset;
  } catch (const Error& error) {
    log::warn(fmt::format("{}; the data are tokenised anew", error.what()));
    return std::nullopt;
  }
}

void DatasetCache::save(const Dataset& dataset) const {
  formats::TokenCache cache;
  cache.rows = dataset.rows();
  cache.num_rows = dataset.num_rows;
  cache.num_bad_rows = dataset.num_bad_rows;
  cache.num_truncated = dataset.num_truncated;
  for (const auto& reason : dataset.bad_row_reasons) {
    cache.bad_row_reasons.push_back(without_name(reason, source_.string()));
  }
  for (const auto& [prompt, response] : dataset.text_pairs) {
    cache.text_pairs.emplace_back(prompt, response);
  }
  try {
    if (file_digest(source_) != source_digest_) return;  // somebody is still writing it
    std::filesystem::create_directories(directory_);
    remove_stale_temporaries(directory_);
    formats::write_token_cache(file_, cache, key_);
  } catch (const std::exception& error) {
    if (!is_first_warning(directory_)) return;
    log::warn(fmt::format("[data.cache_dir] tokens cannot be kept for the next run; {}", error.what()));
  }
}

}  // namespace lora::data
