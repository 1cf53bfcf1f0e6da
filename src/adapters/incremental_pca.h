// Principal components of rows that come batch by batch.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace lora::adapters {

/// Keeps the components alone, never the rows. N rows, D columns, R components. As in PEFT, the first batch is taken in fp32
/// and from the second on sums are in double; signs are such that the largest number of a component is positive; the
/// randomised search draws the numbers that PEFT's does. Source: PEFT 0.21.2 utils/incremental_pca.py, with lowrank and
/// lowrank_seed 42 (after scikit-learn's IncrementalPCA; Ross et al. 2008).
class IncrementalPca {
 public:
  explicit IncrementalPca(int64_t components) : wanted_(components) {}

  /// rows: (N, D), any float type, N at least the number of components.
  void add(const at::Tensor& rows_ND);

  int64_t wanted() const { return wanted_; }
  bool is_empty() const { return !components_RD_.defined(); }
  /// Undefined before the first batch. Directions of length 1, the one with the largest variance first.
  const at::Tensor& components() const { return components_RD_; }
  const at::Tensor& singular_values() const { return singular_R_; }
  /// Parts of the variance of all rows.
  const at::Tensor& explained_ratio() const { return ratio_R_; }

 private:
  void add_to_moments(const at::Tensor& rows_ND);

  int64_t wanted_;
  double num_rows_ = 0;
  at::Tensor mean_D_, variance_D_;  ///< of all rows so far, double
  at::Tensor components_RD_, singular_R_, ratio_R_;
};

}  // namespace lora::adapters
