// What merging an adapter did, by module and in logits.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "cli/options.h"
#include "formats/json.h"

namespace lora::cli {

/// How far apart the logits of two models are, over all positions of some rows.
class LogitChange {
 public:
  void add(const at::Tensor& before_SV, const at::Tensor& after_SV);
  double largest() const { return largest_; }
  double mean() const;
  /// Share of the positions whose most likely token stayed.
  double top_token_kept() const;
  formats::Json to_json() const;

 private:
  double largest_ = 0, sum_ = 0;
  int64_t logits_ = 0, positions_ = 0, kept_ = 0;
};

/// Rows that a merge is judged by.
struct ReportRows {
  std::string source;                   ///< the file, or "built-in"
  int64_t given = 0;                    ///< rows in the file
  std::vector<at::Tensor> ids_1S = {};  ///< those that are used, one tensor per row
  int64_t num_tokens() const;
};

/// The rows of `file` (see RowReader), or of token ids spread over the vocabulary when it is empty: as many as two sets of
/// their logits fit in a gigabyte, one at least; those after them are counted, not looked at. Throws DataError also for a file
/// without rows.
ReportRows report_rows(const LoadedModel& loaded, const std::string& file);

/// Frobenius norms at one module.
struct ModuleNorms {
  double update = 0;    ///< of what the adapter adds
  double weight = 0;    ///< of the base weight
  double rounding = 0;  ///< of what the weight's type loses of the sum
};

/// By module, from a merge on copies, and by parameter of what the adapter trains whole; while it is active. Throws
/// NonFiniteError naming the first module whose merged weight would not be finite.
std::map<std::string, ModuleNorms> module_norms(const AdapterSets& adapters);

/// fp32 logits (S, V) of one row, on the CPU. Throws NonFiniteError naming `what` and the first module whose output is not
/// finite.
at::Tensor logits_of(const LoadedModel& loaded, const at::Tensor& ids_1S, std::string_view what);

}  // namespace lora::cli
