#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "lora/adapters/adapter_set.h"
#include "lora/nn/causal_lm.h"
#include "lora/ops/batch.h"

namespace lora {

/// Explained variance adaptation (Paischer et al. 2024), in PEFT's words.
struct EvaOptions {
  double rho = 2;              ///< a layer's rank is at most rho times what it was
  double tau = 0.99;           ///< a direction is found when its cosine with that of the batch before is at least so much
  bool use_label_mask = true;  ///< only positions whose label is not label_mask_value count
  int64_t label_mask_value = kIgnoreLabel;
  bool whiten = false;                 ///< divides each direction by the root of its singular value
  bool adjust_scaling_factors = true;  ///< alpha follows the rank, so that alpha / rank stays
  int64_t most_batches = 1000;         ///< then what was found is taken, with a warning; PEFT goes on
};

/// What a layer got.
struct EvaLayer {
  std::string path;
  int64_t rank;  ///< 0: it has no adapter any more
  double alpha;
};

/// What initialize_eva found.
struct EvaReport {
  int64_t batches = 0;  ///< that the directions were found in
  bool converged = false;
  std::vector<EvaLayer> layers = {};
};

/// Starts a LoRA adapter with the directions in which each layer's inputs vary most: A holds the leading right singular
/// vectors, B stays zero. The ranks of all layers together stay what they were, and go to the directions that explain the
/// largest part of their layer's variance. A layer that is left with none loses its adapter; afterwards the options have
/// the adapted modules as targets, and rank_pattern and alpha_pattern as PEFT would write them.
///
/// `batch(i)` gives batch i; it is asked for 0, 1, 2, ... once each, until every direction is found. Inputs are seen in
/// evaluation mode, without any adapter, and only running sums are kept; layers with the same input share them. Padding counts
/// unless the label mask or attention_mask_BS leaves it out. Embeddings begin as with "true".
///
/// The same numbers as PEFT's, but for `whiten`: PEFT divides again for each layer that shares an input, here it is done once.
/// Throws ConfigError for an adapter that is not LoRA with init "eva", is not the only active one or is merged, DataError when
/// no batch has as many counted positions as directions are wanted, NonFiniteError for inputs that are not finite.
/// Source: PEFT 0.21.2 tuners/lora/eva.py.
EvaReport initialize_eva(nn::CausalLMImpl& model, const AdapterSet& adapters, const std::function<Batch(int64_t)>& batch,
                         const EvaOptions& options = {});

/// The same with these batches over and over.
EvaReport initialize_eva(nn::CausalLMImpl& model, const AdapterSet& adapters, const std::vector<Batch>& batches,
                         const EvaOptions& options = {});

}  // namespace lora
