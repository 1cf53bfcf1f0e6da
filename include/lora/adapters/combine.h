#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "lora/adapters/adapter_set.h"
#include "lora/io/adapter_files.h"

namespace lora {

/// How adapters become one, in the words of PEFT's add_weighted_adapter. s_i is an adapter's scale
/// in a module, w_i its weight; the new adapter's own scale is 1.
struct CombineOptions {
  /// - cat: the exact sum, of rank sum r_i.
  /// - linear: A = sum of sign(w_i s_i) sqrt|w_i s_i| A_i, B = sum of sqrt|w_i s_i| B_i; all ranks
  ///   equal. Not the sum.
  /// - svd: the best approximation of the sum of w_i s_i B_i A_i of rank svd_rank.
  /// - magnitude_prune, ties, dare_linear, dare_ties: as linear, of factors with `density` of their
  ///   numbers kept, the largest, or (dare) random ones divided by the density; ties averages those
  ///   alone whose sign is the majority's.
  /// - magnitude_prune_svd, ties_svd, dare_linear_svd, dare_ties_svd: the same of the updates
  ///   s_i B_i A_i, then as svd. They form each module's whole update and its singular values:
  ///   seven seconds at 2048 x 2048 on two cores, growing with the cube.
  std::string type = "svd";
  /// Of the svd types; default: the largest rank.
  std::optional<int64_t> svd_rank = {};
  /// A quantile of the new factors beyond which they are cut; of the svd types.
  std::optional<double> svd_clamp = {};
  /// In (0, 1]; of the types that prune, which need it.
  std::optional<double> density = {};
  /// total | frequency; of the ties types.
  std::string majority_sign_method = "total";
  /// Of dare's masks, which are drawn module after module in the order of their names.
  uint64_t seed = 0;
};

/// Every type, in the order above.
std::vector<std::string> combination_types();

/// One LoRA adapter out of several over the same model, by module; a module that only some adapt is
/// made of these. Parameters that one of them trains whole are taken over as they are. One adapter
/// alone is combined as `linear`.
///
/// Throws ConfigError for weights that are not one finite number per adapter, an unknown or
/// incomplete combination, ranks that differ where they must not, targets that are lists in one and
/// an expression in another, and a module that two train whole, or one trains whole and another
/// adapts; ShapeError for what is no LoRA.
///
/// Differs from PEFT 0.21.2 where that gives another sum than it says: an rsLoRA adapter's
/// combination is not scaled once more by sqrt(rank), and whole parameters keep their trained
/// values.
io::AdapterFiles combine_adapters(const std::vector<io::AdapterFiles>& adapters, const std::vector<double>& weights,
                                  const CombineOptions& options = {});

/// The same of adapters that a model carries, as a new adapter that is not active; which ones are
/// stays as it was (they are unmerged and switched on). Throws ConfigError also for a name that the
/// model does not have, or has already.
AdapterSet add_weighted_adapter(torch::nn::Module& model, const std::vector<std::string>& names,
                                const std::vector<double>& weights, const std::string& new_name,
                                const CombineOptions& options = {});

}  // namespace lora
