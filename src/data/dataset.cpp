#include "lora/data/dataset.h"

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "data/dataset_cache.h"
#include "data/tokenise.h"
#include "lora/data/format_registry.h"
#include "lora/data/records.h"

namespace lora::data {
namespace {

Dataset tokenise_all(const Path& file, const DatasetOptions& options, const Tokenizer* tokenizer) {
  Dataset dataset;
  TokenisedRows read;
  tokenise(file, options, tokenizer, {}, read, [&](EncodedRow row, const TokenisedRows&) {
    dataset.add(row.example);
    const bool keeps_text = std::cmp_less(dataset.text_pairs.size(), options.keep_text_pairs);
    if (keeps_text && row.text) dataset.text_pairs.push_back(std::move(*row.text));
  });
  dataset.num_rows = read.num_rows;
  dataset.num_bad_rows = read.num_bad_rows;
  dataset.num_truncated = read.num_truncated;
  dataset.bad_row_reasons = std::move(read.bad_row_reasons);
  require<DataError>(
      dataset.size() > 0, "[{}] a data set must have usable rows; found {} rows, {} of them bad{}", file.string(),
      dataset.num_rows, dataset.num_bad_rows,
      dataset.bad_row_reasons.empty() ? std::string() : fmt::format(" (the first: {})", dataset.bad_row_reasons.front()));
  return dataset;
}

}  // namespace

Dataset::Dataset(std::shared_ptr<const MappedFile> file, formats::TokenCache cache)
    : num_rows(cache.num_rows),
      num_bad_rows(cache.num_bad_rows),
      num_truncated(cache.num_truncated),
      bad_row_reasons(std::move(cache.bad_row_reasons)) {
  for (auto& [prompt, response] : cache.text_pairs) {
    text_pairs.push_back({std::move(prompt), std::move(response)});
  }
  add_part(cache.rows);
  held_ = std::move(file);
  size_ = static_cast<int64_t>(cache.rows.ends.size());
}

Dataset::Dataset(std::shared_ptr<const formats::RecordSet> set)
    : format(set->header().format),
      num_rows(static_cast<int64_t>(set->header().source.rows)),
      num_bad_rows(static_cast<int64_t>(set->header().source.bad_rows)),
      num_truncated(static_cast<int64_t>(set->header().source.truncated)),
      first_row_(set->first_row()),
      size_(set->num_rows()) {
  for (const auto& shard : set->shards()) add_part(shard.rows());
  held_ = std::move(set);
}

void Dataset::add_part(const formats::TokenRows& rows) {
  const int64_t before = part_ends_.empty() ? 0 : part_ends_.back();
  parts_.push_back(rows);
  part_ends_.push_back(before + static_cast<int64_t>(rows.ends.size()));
}

/// The part that a row is in, and its place there.
std::pair<formats::TokenRows, size_t> Dataset::find(int64_t row) const {
  if (!held_) return {{tokens_, ends_, numbers_}, static_cast<size_t>(row)};
  const int64_t place = row + first_row_;
  const auto part = static_cast<size_t>(std::upper_bound(part_ends_.begin(), part_ends_.end(), place) - part_ends_.begin());
  return {parts_[part], static_cast<size_t>(place - (part == 0 ? 0 : part_ends_[part - 1]))};
}

void Dataset::add(const Example& example) {
  const auto& [ids, labels, number] = example;
  require<ConfigError>(held_ == nullptr, "[data set] rows of a file cannot be added to");
  require<DataError>(!ids.empty() && labels.size() == ids.size(),
                     "[row {}] must have tokens and a label for each; found {} tokens, {} labels", number, ids.size(),
                     labels.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    require<DataError>(ids[i] >= 0 && (labels[i] == ids[i] || labels[i] == kIgnoreLabel),
                       "[row {}] ids must be at least 0 and labels their ids or {}; found {} and {}", number, kIgnoreLabel,
                       ids[i], labels[i]);
  }
  for (size_t i = 0; i < ids.size(); ++i) {
    tokens_.push_back(labels[i] == kIgnoreLabel ? ids[i] | formats::kMaskedToken : ids[i]);
  }
  ends_.push_back(static_cast<int64_t>(tokens_.size()));
  numbers_.push_back(number);
  ++size_;
}

Example Dataset::example(int64_t row) const {
  Example example;
  read(row, example);
  return example;
}

formats::TokenRows Dataset::rows() const {
  if (!held_) return {tokens_, ends_, numbers_};
  require<ConfigError>(parts_.size() == 1 && std::cmp_equal(size_, parts_[0].ends.size()),
                       "[data set] rows must lie in one piece; found {} parts", parts_.size());
  return parts_[0];
}

int64_t Dataset::length(int64_t row) const { return static_cast<int64_t>(tokens(row).size()); }

std::span<const int32_t> Dataset::tokens(int64_t row) const {
  const auto [rows, i] = find(row);
  const int64_t begin = i == 0 ? 0 : rows.ends[i - 1];
  return rows.tokens.subspan(static_cast<size_t>(begin), static_cast<size_t>(rows.ends[i] - begin));
}

int64_t Dataset::number(int64_t row) const {
  const auto [rows, i] = find(row);
  return rows.numbers[i];
}

void Dataset::read(int64_t row, Example& example) const {
  const auto tokens = this->tokens(row);
  const size_t size = tokens.size();
  example.input_ids.resize(size);
  example.labels.resize(size);
  for (size_t k = 0; k < size; ++k) {
    const int32_t id = tokens[k] & formats::kTokenId;
    example.input_ids[k] = id;
    example.labels[k] = tokens[k] < 0 ? static_cast<int32_t>(kIgnoreLabel) : id;
  }
  example.row = number(row);
}

void check_dataset_options(const DatasetOptions& options, const Tokenizer* tokenizer) {
  require<ConfigError>(options.max_source_length >= 1 && options.max_target_length >= 1 && options.max_length >= 2,
                       "[data] max_source_length and max_target_length must be at least 1, max_length "
                       "at least 2; found {}, {} and {}",
                       options.max_source_length, options.max_target_length, options.max_length);
  require<ConfigError>(tokenizer != nullptr || !needs_tokenizer(options.format),
                       "[data.format] format {} needs a tokenizer; found none; name one with "
                       "tokenizer.path, or use token data",
                       options.format);
  const bool is_glm = tokenizer != nullptr && tokenizer->glm_ids();
  require<ConfigError>(!is_glm || options.format != "text",
                       "[data.format] rows of a ChatGLM must have a prompt and an answer; found format text; give the "
                       "documents as completion rows");
}

Dataset load_dataset(const Path& file, const DatasetOptions& options, const Tokenizer* tokenizer) {
  if (options.format == "records") return open_records(file, options, tokenizer);
  check_dataset_options(options, tokenizer);
  const auto cache = DatasetCache::find(file, options, tokenizer);
  std::optional<Dataset> cached = cache ? cache->load() : std::nullopt;
  Dataset dataset = cached ? *std::move(cached) : tokenise_all(file, options, tokenizer);
  if (cache && !cached) cache->save(dataset);
  dataset.format = options.format;
  return dataset;
}

Dataset adgen(const Path& file, const Tokenizer& tokenizer, const AdgenOptions& options) {
  return load_dataset(file, {.format = "adgen", .max_source_length = options.max_source, .max_target_length = options.max_target},
                      &tokenizer);
}

std::vector<int64_t> encode_prompt(const Tokenizer& tokenizer, std::string_view prompt) {
  std::vector<int64_t> ids = tokenizer.encode(prompt);
  if (const auto glm = tokenizer.glm_ids()) {
    ids.insert(ids.end(), {glm->gmask, glm->sop});
    return ids;
  }
  if (tokenizer.bos_id() >= 0) ids.insert(ids.begin(), tokenizer.bos_id());
  return ids;
}

std::vector<int64_t> encode_completion(const Tokenizer& tokenizer, std::string_view completion) {
  std::vector<int64_t> ids = tokenizer.encode(completion);
  if (tokenizer.eos_id() >= 0) ids.push_back(tokenizer.eos_id());
  return ids;
}

}  // namespace lora::data
