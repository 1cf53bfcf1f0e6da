#include "lora/data/collate.h"

#include <ATen/ops/empty.h>

#include <algorithm>

#include "core/check.h"

namespace lora::data {
namespace {

/// Length of the longest row.
int64_t check_rows(std::span<const Example* const> examples) {
  require<DataError>(!examples.empty(), "[batch] must have rows; found none");
  size_t longest = 0;
  for (const Example* example : examples) {
    require<DataError>(!example->input_ids.empty() && example->labels.size() == example->input_ids.size(),
                       "[row {}] must have tokens and a label for each; found {} tokens, {} labels", example->row,
                       example->input_ids.size(), example->labels.size());
    longest = std::max(longest, example->input_ids.size());
  }
  return static_cast<int64_t>(longest);
}

at::Tensor empty_ids(int64_t rows, int64_t length, bool pinned) {
  return at::empty({rows, length}, at::TensorOptions(at::kLong).pinned_memory(pinned));
}

/// Plain loops instead of tensor operations: these run in loader threads, each of which would start
/// a thread pool of its own.
int64_t* copy_padded(const std::vector<int32_t>& values, int64_t length, int64_t padding, int64_t* out) {
  int64_t* const end = std::copy(values.begin(), values.end(), out);
  return std::fill_n(end, length - static_cast<int64_t>(values.size()), padding);
}

int64_t padded_length(int64_t longest, int64_t multiple, int64_t limit) {
  const int64_t rounded = (longest + multiple - 1) / multiple * multiple;
  return limit > 0 ? std::max(longest, std::min(rounded, limit)) : rounded;
}

void count_targets(const Example& example, Batch& batch) {
  batch.num_targets += example.num_targets();
  batch.num_first_targets += example.labels.front() != kIgnoreLabel;
}

}  // namespace

Batch collate(std::span<const Example* const> examples, int64_t pad_id, int64_t pad_to_multiple_of, int64_t max_length,
              bool pinned) {
  const int64_t length = padded_length(check_rows(examples), pad_to_multiple_of, max_length);
  const auto num_rows = static_cast<int64_t>(examples.size());
  Batch batch;
  batch.input_ids_BS = empty_ids(num_rows, length, pinned);
  batch.labels_BS = empty_ids(num_rows, length, pinned);
  int64_t* ids = batch.input_ids_BS.mutable_data_ptr<int64_t>();
  int64_t* labels = batch.labels_BS.mutable_data_ptr<int64_t>();
  for (const Example* example : examples) {
    ids = copy_padded(example->input_ids, length, pad_id, ids);
    labels = copy_padded(example->labels, length, kIgnoreLabel, labels);
    batch.rows.push_back(example->row);
    batch.num_tokens += static_cast<int64_t>(example->input_ids.size());
    count_targets(*example, batch);
  }
  return batch;
}

Batch collate_packed(std::span<const Example* const> examples, int64_t pad_id, int64_t pad_to_multiple_of, bool pinned) {
  check_rows(examples);
  Batch batch;
  for (const Example* example : examples) {
    batch.segment_lengths.push_back(static_cast<int64_t>(example->input_ids.size()));
    batch.rows.push_back(example->row);
    batch.num_tokens += batch.segment_lengths.back();
    count_targets(*example, batch);
  }
  const int64_t length = padded_length(batch.num_tokens, pad_to_multiple_of, 0);
  if (length > batch.num_tokens) batch.segment_lengths.push_back(length - batch.num_tokens);
  batch.input_ids_BS = empty_ids(1, length, pinned);
  batch.labels_BS = empty_ids(1, length, pinned);
  int64_t* ids = batch.input_ids_BS.mutable_data_ptr<int64_t>();
  int64_t* labels = batch.labels_BS.mutable_data_ptr<int64_t>();
  for (const Example* example : examples) {
    ids = std::copy(example->input_ids.begin(), example->input_ids.end(), ids);
    labels = std::copy(example->labels.begin(), example->labels.end(), labels);
  }
  std::fill_n(ids, length - batch.num_tokens, pad_id);
  std::fill_n(labels, length - batch.num_tokens, kIgnoreLabel);
  return batch;
}

}  // namespace lora::data
