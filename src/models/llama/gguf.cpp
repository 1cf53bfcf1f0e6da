#include "lora/models/llama/gguf.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "adapters/targets.h"
#include "core/check.h"
#include "lora/adapters/adapter_io.h"
#include "lora/core/file.h"
#include "lora/core/pattern.h"
#include "lora/io/dtype.h"

// Legend: O outputs, I inputs, R rank, V vocabulary, D model.
namespace lora::llama {
namespace {

using at::Tensor;

constexpr std::string_view kEmbedding = "model.embed_tokens", kHead = "lm_head";
constexpr std::string_view kLayers = "model.layers.";
constexpr size_t kNamesShown = 5;

/// Hugging Face's names in a layer, and GGUF's.
constexpr std::pair<std::string_view, std::string_view> kLayerNames[] = {
    {"self_attn.q_proj", "attn_q"},      {"self_attn.k_proj", "attn_k"}, {"self_attn.v_proj", "attn_v"},
    {"self_attn.o_proj", "attn_output"}, {"mlp.gate_proj", "ffn_gate"},  {"mlp.up_proj", "ffn_up"},
    {"mlp.down_proj", "ffn_down"}};

/// Where a module's update goes.
struct Place {
  std::string name;          ///< of the weight in GGUF: "blk.0.attn_q.weight"
  int64_t out = 0, in = 0;   ///< of the weight; an embedding is (vocabulary, dim)
  int64_t rotary_heads = 0;  ///< whose rows llama.cpp orders in pairs; 0: none
};
using Places = std::map<std::string, Place>;

/// The GGUF name of a module's weight; empty for modules that take no update (norms).
std::string gguf_name(const std::string& path) {
  if (path == kEmbedding) return "token_embd.weight";
  if (path == kHead) return "output.weight";
  if (!path.starts_with(kLayers)) return {};
  const std::string rest = path.substr(kLayers.size());
  const size_t dot = rest.find('.');
  const auto known = std::ranges::find_if(kLayerNames, [&](const auto& names) { return rest.substr(dot + 1) == names.first; });
  if (known == std::end(kLayerNames)) return {};
  return fmt::format("blk.{}.{}.weight", rest.substr(0, dot), known->second);
}

Places places_of(const LlamaConfig& config) {
  require<ShapeError>(!config.fused_qkv,
                      "[gguf] llama.cpp's layers for q, k and v are three; found a Baichuan, whose adapters are on W_pack; "
                      "merge the adapter into the model instead (lora merge)");
  constexpr std::string_view kWeight = ".weight";
  Places places;
  for (const auto& [name, shape] : llama_weight_shapes(config)) {
    if (!name.ends_with(kWeight)) continue;
    const std::string path = name.substr(0, name.size() - kWeight.size());
    const std::string target = gguf_name(path);
    if (target.empty()) continue;
    const int64_t heads = path.ends_with("q_proj")   ? config.num_attention_heads
                          : path.ends_with("k_proj") ? config.num_key_value_heads
                                                     : 0;
    places[path] = {target, shape.at(0), shape.at(1), heads};
  }
  return places;
}

std::string listed(const std::vector<std::string>& names) {
  const auto shown = static_cast<std::ptrdiff_t>(std::min(names.size(), kNamesShown));
  return fmt::format("{}{}", fmt::join(names.begin(), names.begin() + shown, ", "), names.size() > kNamesShown ? ", ..." : "");
}

/// Rows of a q or k projection from Hugging Face's rotary order (i, i + K/2) to pairs (2i, 2i + 1): the inverse of
/// meta_to_hf_rotary.
Tensor hf_to_paired_rotary(const Tensor& rows, int64_t heads) {
  const int64_t out = rows.size(0), columns = rows.size(1);
  return rows.view({heads, 2, out / heads / 2, columns}).transpose(1, 2).reshape({out, columns});
}

const Place& place_for(const Places& places, const LowRankValue& update, const LlamaConfig& config) {
  const auto found = places.find(update.path);
  require<ShapeError>(found != places.end(),
                      "[gguf] every update must be of a linear layer or the embedding of the model; found {:?}; check that "
                      "the adapter belongs to this base model",
                      update.path);
  const bool is_embedding = update.path == kEmbedding;
  require<ShapeError>(!is_embedding || !config.tie_word_embeddings,
                      "[gguf] an update of an embedding that is tied to the output head cannot be told apart in GGUF; found "
                      "one of {}; merge the adapter into the model instead (lora merge)",
                      update.path);
  const Place& place = found->second;
  const int64_t in = is_embedding ? place.out : place.in, out = is_embedding ? place.in : place.out;
  const Tensor &a = update.a_RI, &b = update.b_OR;
  const bool fits = update.embedding == is_embedding && a.dim() == 2 && b.dim() == 2 && a.size(0) == b.size(1) &&
                    a.size(1) == in && b.size(0) == out;
  require<ShapeError>(fits,
                      "[gguf] the update of {} must have A of [rank, {}] and B of [{}, rank]; found [{}] and [{}]; check "
                      "that the adapter belongs to this base model",
                      update.path, in, out, fmt::join(a.sizes(), ", "), fmt::join(b.sizes(), ", "));
  return place;
}

/// Collects tensors as they will stand in the file.
class Contents {
 public:
  explicit Contents(DType dtype) : dtype_(dtype), type_(formats::ggml_type_of(dtype)) {
    require<ConfigError>(type_.has_value(), "[gguf] the numbers must be fp32, fp16 or bf16; found {}; use fp32",
                         short_name(dtype));
  }

  void add(std::string name, const Tensor& value, const std::string& path) {
    Tensor stored = value.to(at::kCPU, io::to_torch(dtype_, "gguf")).contiguous();
    require<NonFiniteError>(stored.isfinite().all().item<bool>(),
                            "[gguf] updates must be finite numbers in {}; found others in {}; {}", short_name(dtype_), path,
                            dtype_ == DType::kF16 ? "use bf16 or fp32" : "the adapter is damaged");
    header.tensors.push_back({.name = std::move(name), .type = *type_, .shape = stored.sizes().vec()});
    data_.push_back(std::move(stored));
  }

  void write(const Path& file) {
    const std::string head = formats::write_gguf_header(header);
    const std::string zeros(header.alignment, '\0');
    std::vector<std::string_view> pieces = {head};
    for (const Tensor& tensor : data_) {
      pieces.emplace_back(static_cast<const char*>(tensor.data_ptr()), tensor.nbytes());
      pieces.push_back(std::string_view(zeros).substr(0, formats::gguf_padding(tensor.nbytes(), header.alignment)));
    }
    write_file_atomically(file, pieces);
  }

  formats::GgufHeader header;

 private:
  DType dtype_;
  std::optional<uint32_t> type_;
  std::vector<Tensor> data_;
};

/// llama.cpp's LLAMA_FTYPE of files whose numbers all have one type.
uint32_t file_type_of(DType dtype) { return dtype == DType::kBF16 ? 32 : dtype == DType::kF16 ? 1 : 0; }

std::vector<std::pair<std::string, formats::GgufValue>> metadata_of(double alpha, DType dtype) {
  return {{"general.architecture", {std::string("llama")}},
          {"general.type", {std::string("adapter")}},
          {"adapter.type", {std::string("lora")}},
          {"general.file_type", {file_type_of(dtype)}},
          {"adapter.lora.alpha", {static_cast<float>(alpha)}}};
}

/// B so that alpha / rank * B A is the update.
Tensor folded(const LowRankValue& update, double alpha) {
  const auto factor = static_cast<float>(update.scale * static_cast<double>(update.b_OR.size(1)) / alpha);
  return factor == 1.0F ? update.b_OR : update.b_OR * factor;
}

void require_expressible(const LowRankAdapter& adapter) {
  if (adapter.others.empty()) return;
  const std::string& name = adapter.others.begin()->first;
  fail<ShapeError>(
      "[gguf] an adapter must be made of low-rank updates alone, since GGUF knows no other; found {} ({:?}); "
      "merge the adapter into the model instead (lora merge)",
      part_of_method(name), name);
}

/// The modules of the model that the options of an adapter mean.
template <class Options>
std::vector<std::string> targets_of(const Options& options, const Places& places) {
  const TargetRule rule = adapters::rule_of(options);
  const TargetMatcher matcher(rule);
  std::vector<std::string> paths;
  for (const auto& [path, place] : places) {
    const bool is_candidate = !rule.is_all_linear() || (path != kEmbedding && path != kHead);
    if (is_candidate && matcher.matches(path)) paths.push_back(path);
  }
  return paths;
}

void require_same_modules(const LowRankAdapter& adapter, const std::vector<std::string>& targets) {
  std::vector<std::string> paths, missing, extra;
  for (const auto& update : adapter.updates) paths.push_back(update.path);
  std::ranges::sort(paths);
  std::ranges::set_difference(targets, paths, std::back_inserter(missing));
  std::ranges::set_difference(paths, targets, std::back_inserter(extra));
  require<ShapeError>(missing.empty() && extra.empty(),
                      "[gguf] the file must hold an update for exactly the modules that target_modules means; found {} "
                      "missing ({}) and {} without a place ({}); check adapter_config.json, and that the adapter belongs to "
                      "this base model",
                      missing.size(), listed(missing), extra.size(), listed(extra));
}

}  // namespace

formats::GgufHeader save_gguf_lora(const Path& file, const LlamaConfig& config, const std::vector<LowRankValue>& updates,
                                   double alpha, DType dtype) {
  require<ConfigError>(std::isfinite(alpha) && alpha != 0, "[gguf] alpha must be a number other than 0; found {}; use 1", alpha);
  const Places places = places_of(config);
  Contents contents(dtype);
  contents.header.metadata = metadata_of(alpha, dtype);
  for (const LowRankValue& update : updates) {
    const Place& place = place_for(places, update, config);
    if (update.a_RI.size(0) == 0) continue;
    Tensor b_OR = folded(update, alpha);
    if (place.rotary_heads > 0) b_OR = hf_to_paired_rotary(b_OR, place.rotary_heads);
    contents.add(place.name + ".lora_a", update.embedding ? update.a_RI.t() : update.a_RI, update.path);
    contents.add(place.name + ".lora_b", b_OR, update.path);
  }
  require<ShapeError>(!contents.header.tensors.empty(),
                      "[gguf] an adapter must update at least one module; found none; there "
                      "is nothing to write");
  contents.write(file);
  return contents.header;
}

formats::GgufHeader save_gguf_lora(const Path& file, const LlamaConfig& config, const io::AdapterFiles& files, DType dtype) {
  const LowRankAdapter adapter = low_rank_adapter(files);
  require_expressible(adapter);
  const MethodOptions method = options_from(files.config);
  if (const auto* adalora = std::get_if<AdaLoraOptions>(&method)) {
    require_same_modules(adapter, targets_of(*adalora, places_of(config)));
    return save_gguf_lora(file, config, adapter.updates, /*alpha=*/1, dtype);
  }
  const LoraOptions options = lora_options_from(files.config);
  require_same_modules(adapter, targets_of(options, places_of(config)));
  return save_gguf_lora(file, config, adapter.updates, options.alpha == 0 ? 1 : options.alpha, dtype);
}

}  // namespace lora::llama
