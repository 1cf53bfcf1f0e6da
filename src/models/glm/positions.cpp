#include "models/glm/positions.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <span>

#include "core/check.h"

namespace lora::glm {
namespace {

using Ids = std::span<const int64_t>;

/// The tokens of a sequence, and whether each is one.
struct Row {
  Ids ids, real;  ///< real: empty, all are
  int64_t number;

  bool is_real(size_t i) const { return real.empty() || real[i] != 0; }
};

std::vector<int64_t> places_of(const Row& row, int64_t id) {
  std::vector<int64_t> places;
  for (size_t i = 0; i < row.ids.size(); ++i) {
    if (row.is_real(i) && row.ids[i] == id) places.push_back(static_cast<int64_t>(i));
  }
  return places;
}

PromptPlace place_in(const Row& row, const GlmConfig& config) {
  PromptPlace place;
  const auto length = static_cast<int64_t>(row.ids.size());
  while (place.begin < length && !row.is_real(static_cast<size_t>(place.begin))) ++place.begin;
  if (place.begin == length) return place;  // padding alone
  const auto answers = places_of(row, config.bos_token_id);
  require<DataError>(
      answers.size() == 1,
      "[row {}] a row for ChatGLM must have exactly one <sop> (token {}); found {} in {} tokens; a prompt ends in [gMASK] "
      "<sop>, and a row that was cut must keep both",
      row.number, config.bos_token_id, answers.size(), length);
  place.context = answers.front() - place.begin;
  for (const int64_t id : {config.gmask_token_id, config.mask_token_id}) {
    const auto masks = places_of(row, id);
    if (masks.empty() || masks.front() >= answers.front()) continue;
    place.mask = masks.front() - place.begin;
    return place;
  }
  fail<DataError>(
      "[row {}] a row for ChatGLM must have [gMASK] or [MASK] (token {} or {}) before <sop>; found neither; a prompt ends "
      "in [gMASK] <sop>",
      row.number, config.gmask_token_id, config.mask_token_id);
}

bool fills_up(Ids ids, const GlmConfig& config) {
  return ids.front() != config.bos_token_id && std::ranges::all_of(ids, [&](int64_t id) { return id == ids.front(); });
}

Tensor on_host(const Tensor& x) { return x.to(at::kCPU, at::kLong).contiguous(); }

Ids row_of(const Tensor& x_BS, int64_t row) {
  return {x_BS.const_data_ptr<int64_t>() + row * x_BS.size(1), static_cast<size_t>(x_BS.size(1))};
}

int64_t number_of(const Batch& batch, size_t sequence) {
  return sequence < batch.rows.size() ? batch.rows[sequence] : static_cast<int64_t>(sequence);
}

std::vector<PromptPlace> places_in_packed_row(const Batch& batch, Ids ids, const GlmConfig& config) {
  std::vector<PromptPlace> places;
  const auto& lengths = batch.segment_lengths;
  for (size_t i = 0; i < lengths.size(); ++i) {
    const Ids own = ids.first(static_cast<size_t>(lengths[i]));
    ids = ids.subspan(own.size());
    const bool is_filling = i > 0 && i + 1 == lengths.size() && fills_up(own, config);
    places.push_back(is_filling ? PromptPlace{0, lengths[i], 0} : place_in({own, {}, number_of(batch, i)}, config));
  }
  return places;
}

/// Collects both positions of one place after the other.
struct Collected {
  std::vector<int64_t> tokens, blocks;

  void add(int64_t token, int64_t block) {
    tokens.push_back(token);
    blocks.push_back(block);
  }
  void add_virtual(const VirtualPlaces& before) {
    for (int64_t i = 0; i < before.prefixed; ++i) add(0, 0);
    for (int64_t i = 0; i < before.embedded; ++i) add(i, 0);
  }
  void add_real(const PromptPlace& place, int64_t first, int64_t length, int64_t num_embedded) {
    for (int64_t i = first; i < first + length; ++i) {
      if (i < place.begin) {
        add(0, 0);
      } else if (i < place.end()) {
        add(num_embedded + i - place.begin, 0);
      } else {
        add(num_embedded + place.mask, i - place.end() + 1);
      }
    }
  }
};

}  // namespace

std::shared_ptr<const nn::CacheNotes> PromptNotes::with_rows(const std::vector<int64_t>& rows) const {
  auto notes = std::make_shared<PromptNotes>(*this);
  notes->places.clear();
  for (const int64_t row : rows) notes->places.push_back(places.at(static_cast<size_t>(row)));
  return notes;
}

std::shared_ptr<const nn::CacheNotes> PromptNotes::without_first(int64_t count) const {
  auto notes = std::make_shared<PromptNotes>(*this);
  for (PromptPlace& place : notes->places) place.begin -= count;
  return notes;
}

std::vector<PromptPlace> prompt_places(const Batch& batch, const GlmConfig& config) {
  const Tensor ids_BS = on_host(batch.host_ids_BS.defined() ? batch.host_ids_BS : batch.input_ids_BS);
  if (!batch.segment_lengths.empty()) return places_in_packed_row(batch, row_of(ids_BS, 0), config);
  const Tensor real_BS = batch.attention_mask_BS.defined() ? on_host(batch.attention_mask_BS) : Tensor();
  std::vector<PromptPlace> places;
  for (int64_t b = 0; b < ids_BS.size(0); ++b) {
    const Ids real = real_BS.defined() ? row_of(real_BS, b) : Ids();
    places.push_back(place_in({row_of(ids_BS, b), real, number_of(batch, static_cast<size_t>(b))}, config));
  }
  return places;
}

std::pair<Tensor, Tensor> positions_of(const std::vector<PromptPlace>& places, int64_t first, int64_t length,
                                       const std::vector<int64_t>& lengths, const VirtualPlaces& before, int64_t num_embedded,
                                       const at::Device& device) {
  Collected collected;
  for (size_t i = 0; i < places.size(); ++i) {
    collected.add_virtual(before);
    collected.add_real(places[i], first, lengths.empty() ? length : lengths[i], num_embedded);
  }
  const int64_t rows = lengths.empty() ? static_cast<int64_t>(places.size()) : 1;
  const auto table = [&](const std::vector<int64_t>& values) {
    return at::tensor(values, at::kLong).view({rows, -1}).to(device);
  };
  return {table(collected.tokens), table(collected.blocks)};
}

}  // namespace lora::glm
