#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "lora/nn/adapter.h"

namespace lora::nn {

/// While one is alive, the slots that it names add, on this thread, each adapter's update to its rows alone, whatever else is
/// active there; other slots are as ever. Rows are the first dimension of a layer's input. See lora::AdapterRows.
class RowAdapters {
 public:
  struct Group {
    std::shared_ptr<Adapter> adapter;
    std::vector<int64_t> rows;
  };
  /// A slot without groups computes its base alone.
  using Choice = std::unordered_map<const AdapterSlot*, std::vector<Group>>;

  /// Inputs have `num_rows` rows; those of a Linear `min_dims` dimensions at least, an Embedding's ids one less. (States that
  /// were picked out of a batch and lie in one matrix are of no known row.)
  RowAdapters(const Choice& choice, int64_t num_rows, int64_t min_dims);
  ~RowAdapters();
  RowAdapters(const RowAdapters&) = delete;
  RowAdapters& operator=(const RowAdapters&) = delete;

 private:
  struct Indexed {
    std::shared_ptr<Adapter> adapter;
    Tensor rows;
  };
  std::unordered_map<const AdapterSlot*, std::vector<Indexed>> choice_;
  int64_t num_rows_, min_dims_;
  RowAdapters* outer_;

  friend bool rows_are_chosen(const AdapterSlot& slot);
  friend Tensor add_chosen_rows(const AdapterSlot& slot, const Tensor& base, const Tensor& x, bool ids);
};

/// Whether adapters are chosen by row in this slot now.
bool rows_are_chosen(const AdapterSlot& slot);

/// `base` with each chosen adapter's update of its rows of x added; x holds an embedding's ids when `ids`. Throws ShapeError when
/// x has another number of rows, or too few dimensions to have any.
Tensor add_chosen_rows(const AdapterSlot& slot, const Tensor& base, const Tensor& x, bool ids = false);

}  // namespace lora::nn
