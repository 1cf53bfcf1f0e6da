#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <vector>

#include "lora/io/adapter_files.h"

namespace lora {

/// What an adapter adds to one module's weight, in plain numbers: scale * b a.
struct LowRankValue {
  std::string path;       ///< "model.layers.0.self_attn.q_proj"
  at::Tensor a_RI, b_OR;  ///< fp32; of an embedding (rank, vocabulary) and (dim, rank)
  double scale = 1;
  bool embedding = false;
};

/// An adapter's files as plain updates.
struct LowRankAdapter {
  std::vector<LowRankValue> updates = {};  ///< by path
  /// Every other tensor, by its name without "base_model.model.".
  std::map<std::string, at::Tensor> others = {};
};

/// The pairs of a LoRA, rsLoRA or AdaLoRA adapter (its E folded into A) with their scales. Names with or without PEFT's prefix
/// and with an adapter's name left in are accepted, frozen copies of base weights left out. Throws ShapeError, naming the module,
/// for half a pair and for factors that are no matrices of the rank that the config gives them.
LowRankAdapter low_rank_adapter(const io::AdapterFiles& files);

/// What a tensor among `others` belongs to, for messages: "DoRA", "a bias", "a module trained whole
/// (modules_to_save)", ...
std::string part_of_method(const std::string& name);

}  // namespace lora
