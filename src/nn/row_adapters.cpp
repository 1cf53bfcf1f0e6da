#include "lora/nn/row_adapters.h"

#include <ATen/ATen.h>

#include "core/check.h"

namespace lora::nn {
namespace {

thread_local RowAdapters* current_rows = nullptr;

}  // namespace

RowAdapters::RowAdapters(const Choice& choice, int64_t num_rows, int64_t min_dims)
    : num_rows_(num_rows), min_dims_(min_dims), outer_(current_rows) {
  for (const auto& [slot, groups] : choice) {
    auto& indexed = choice_[slot];
    for (const auto& [adapter, rows] : groups) {
      const auto parameters = adapter->parameters();
      const at::Device device = parameters.empty() ? at::Device(at::kCPU) : parameters.front().device();
      indexed.push_back({adapter, at::tensor(rows, at::kLong).to(device)});
    }
  }
  current_rows = this;
}

RowAdapters::~RowAdapters() { current_rows = outer_; }

bool rows_are_chosen(const AdapterSlot& slot) { return current_rows != nullptr && current_rows->choice_.contains(&slot); }

Tensor add_chosen_rows(const AdapterSlot& slot, const Tensor& base, const Tensor& x, bool ids) {
  const auto& groups = current_rows->choice_.at(&slot);
  const int64_t min_dims = current_rows->min_dims_ - (ids ? 1 : 0);
  require<ShapeError>(groups.empty() || (x.dim() >= min_dims && x.size(0) == current_rows->num_rows_),
                      "[adapter_rows] a layer with adapters by row must see the whole batch, {} rows; found an input of [{}]; "
                      "choose one adapter per row of the batch, and do not pack rows",
                      current_rows->num_rows_, fmt::join(x.sizes(), ", "));
  Tensor y = base;
  for (const auto& [adapter, rows] : groups) {
    y = y.index_add(0, rows, adapter->delta(x.index_select(0, rows)).to(y.scalar_type()));
  }
  return y;
}

}  // namespace lora::nn
