#include "lora/adapters/low_rank.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cctype>
#include <optional>
#include <utility>

#include "adapters/listing.h"
#include "adapters/peft_names.h"
#include "core/check.h"
#include "lora/adapters/adapter_io.h"

namespace lora {
namespace {

constexpr std::string_view kWeight = ".weight";

/// A tensor that is one factor of a module's update.
struct Factor {
  std::string path;
  bool embedding, is_b;
};

bool is_word(std::string_view name) {
  return !name.empty() && std::ranges::all_of(name, [](unsigned char c) { return std::isalnum(c) != 0 || c == '_' || c == '-'; });
}

/// "PATH.lora_A[.NAME][.weight]", and the three like it; nothing for other names.
std::optional<Factor> factor_of(const std::string& name) {
  constexpr std::string_view kMark = ".lora_", kEmbedding = "embedding_";
  const size_t mark = name.rfind(kMark);
  if (mark == std::string::npos) return std::nullopt;
  std::string_view rest = std::string_view(name).substr(mark + kMark.size());
  const bool embedding = rest.starts_with(kEmbedding);
  if (embedding) rest.remove_prefix(kEmbedding.size());
  if (!rest.starts_with('A') && !rest.starts_with('B')) return std::nullopt;
  const bool is_b = rest.front() == 'B';
  rest.remove_prefix(1);
  const bool is_weight = rest.ends_with(kWeight);
  if (is_weight) rest.remove_suffix(kWeight.size());
  // Only an embedding's factors are bare parameters, whose last word may be the adapter's name.
  const bool is_named = (is_weight || embedding) && rest.starts_with('.') && is_word(rest.substr(1));
  if (!rest.empty() && !is_named) return std::nullopt;
  return Factor{name.substr(0, mark), embedding, is_b};
}

struct Pair {
  at::Tensor a_RI, b_OR;
  bool embedding = false;
};

LowRankValue value_of(const std::string& path, const Pair& pair, const LoraOptions& options) {
  const auto quoted = adapters::quote_name(path);
  require<ShapeError>(pair.a_RI.defined() && pair.b_OR.defined(),
                      "[adapters] every module of an adapter must have both factors; found only "
                      "lora_{} of {}; the file is damaged",
                      pair.a_RI.defined() ? "A" : "B", quoted);
  const auto [rank, alpha, scale] = lora_size(options, path);
  const bool fits = pair.a_RI.dim() == 2 && pair.b_OR.dim() == 2 && pair.a_RI.size(0) == rank && pair.b_OR.size(1) == rank &&
                    pair.a_RI.is_floating_point() && pair.b_OR.is_floating_point();
  require<ShapeError>(fits,
                      "[adapters] the factors of {} must be float matrices of rank {}, as "
                      "adapter_config.json says; found A [{}] and B [{}]; check r and rank_pattern",
                      quoted, rank, fmt::join(pair.a_RI.sizes(), ", "), fmt::join(pair.b_OR.sizes(), ", "));
  return {.path = path,
          .a_RI = pair.a_RI.to(at::kFloat),
          .b_OR = pair.b_OR.to(at::kFloat),
          .scale = scale,
          .embedding = pair.embedding};
}

/// AdaLoRA's B diag(E) A with E folded into A; takes E from among the other tensors.
LowRankValue folded(const std::string& path, const Pair& pair, const AdaLoraOptions& options,
                    std::map<std::string, at::Tensor>& others) {
  const auto e_R1 = others.extract(path + ".lora_E");
  const bool fits = !e_R1.empty() && pair.a_RI.defined() && pair.b_OR.defined() && pair.a_RI.dim() == 2 && pair.b_OR.dim() == 2 &&
                    e_R1.mapped().sizes() == at::IntArrayRef({pair.a_RI.size(0), 1}) && pair.b_OR.size(1) == pair.a_RI.size(0);
  require<ShapeError>(
      fits,
      "[adapters] every module of an AdaLoRA adapter must have lora_A, lora_B and lora_E of one rank; found others "
      "of {}; the file is damaged",
      adapters::quote_name(path));
  return {.path = path,
          .a_RI = pair.a_RI.to(at::kFloat) * e_R1.mapped().to(at::kFloat),
          .b_OR = pair.b_OR.to(at::kFloat),
          .scale = adalora_scale(options)};
}

}  // namespace

LowRankAdapter low_rank_adapter(const io::AdapterFiles& files) {
  LowRankAdapter adapter;
  std::map<std::string, Pair> pairs;
  for (const auto& [file_name, tensor] : files.tensors) {
    const std::string name =
        file_name.starts_with(adapters::kFilePrefix) ? file_name.substr(adapters::kFilePrefix.size()) : file_name;
    if (name.ends_with(".base_layer.weight")) continue;
    const auto factor = factor_of(name);
    if (!factor) {
      adapter.others.emplace(name, tensor);
      continue;
    }
    Pair& pair = pairs[factor->path];
    at::Tensor& place = factor->is_b ? pair.b_OR : pair.a_RI;
    require<ShapeError>(!place.defined(),
                        "[adapters] a module must have one pair of factors; found more of {}; the "
                        "file is damaged",
                        adapters::quote_name(factor->path));
    place = tensor;
    pair.embedding = factor->embedding;
  }
  const MethodOptions method = options_from(files.config);
  if (const auto* adalora = std::get_if<AdaLoraOptions>(&method)) {
    for (const auto& [path, pair] : pairs) adapter.updates.push_back(folded(path, pair, *adalora, adapter.others));
    return adapter;
  }
  const LoraOptions options = lora_options_from(files.config);
  require<FormatError>(
      options.init != "pissa" && options.init != "olora",
      "[adapters] an adapter must be plain LoRA here; found one saved after init_lora_weights {}, whose update counts "
      "from factors that are in the base model; convert it first: lora export --to peft with the model's weights",
      options.init);
  for (const auto& [path, pair] : pairs) adapter.updates.push_back(value_of(path, pair, options));
  return adapter;
}

std::string part_of_method(const std::string& name) {
  const std::pair<const char*, const char*> marks[] = {{"lora_magnitude_vector", "DoRA"},
                                                       {"lora_E", "AdaLoRA"},
                                                       {"ia3_l", "IA3"},
                                                       {"prompt_embeddings", "a prompt method"},
                                                       {"trainable_tokens_delta", "trainable tokens (trainable_token_indices)"}};
  for (const auto& [mark, method] : marks) {
    if (name.find(mark) != std::string::npos) return method;
  }
  return name.ends_with(".bias") ? "a bias" : "a module trained whole (modules_to_save)";
}

}  // namespace lora
