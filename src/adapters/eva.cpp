#include "lora/adapters/eva.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <span>
#include <utility>

#include "adapters/incremental_pca.h"
#include "adapters/refit.h"
#include "adapters/state.h"
#include "core/check.h"
#include "lora/adapters/inject.h"
#include "lora/core/file.h"
#include "lora/core/log.h"
#include "nn/eval_mode.h"

// Legend: B batch, S sequence, N counted positions, D inputs of a layer, R directions.
namespace lora {
namespace {

using adapters::IncrementalPca;

constexpr const char* kObserver = "eva_observer";

/// Shows what a layer multiplies, and changes nothing.
class InputObserver : public nn::Adapter {
 public:
  using See = std::function<void(const at::Tensor& x)>;
  explicit InputObserver(See see) : see_(std::move(see)) {}

  at::Tensor delta(const at::Tensor& /*x*/) override { fail_to_add(); }
  at::Tensor weight_delta() const override { fail_to_add(); }
  at::Tensor apply(const at::Tensor& x, const at::Tensor& y, nn::LinearImpl& /*layer*/) override {
    see_(x);
    return y;
  }

 private:
  [[noreturn]] static void fail_to_add() { fail<ConfigError>("[adapters.eva] what observes a layer adds nothing to it"); }

  See see_;
};

/// Observers on some layers for one pass, as the only thing that is active there.
class Observation {
 public:
  explicit Observation(nn::CausalLMImpl& model) : model_(model), fast_(model.fast_paths) { model.fast_paths.joined = false; }
  ~Observation() {
    for (auto& layer : layers_) layer.ptr()->detach(kObserver);
    model_.fast_paths = fast_;
  }
  Observation(const Observation&) = delete;
  Observation& operator=(const Observation&) = delete;

  void observe(nn::Linear layer, InputObserver::See see) {
    layer->attach(kObserver, std::make_shared<InputObserver>(std::move(see)));
    layers_.push_back(layer);
    layer->slot.set_active({kObserver});
  }

 private:
  nn::CausalLMImpl& model_;
  nn::FastPaths fast_;  ///< layers that are joined see their input once, and say that an observer is slow
  std::vector<nn::Linear> layers_;
};

/// No adapter is active for a scope.
class BaseAlone {
 public:
  explicit BaseAlone(nn::CausalLMImpl& model) : model_(model), active_(active_adapters(model)), eval_(model) {
    set_active_adapters(model, {});
  }
  ~BaseAlone() { set_active_adapters(model_, active_); }
  BaseAlone(const BaseAlone&) = delete;
  BaseAlone& operator=(const BaseAlone&) = delete;

 private:
  nn::CausalLMImpl& model_;
  std::vector<std::string> active_;
  nn::EvalMode eval_;
};

const LoraOptions& require_eva(nn::CausalLMImpl& model, const AdapterSet& adapters, const EvaOptions& options) {
  const auto* lora = std::get_if<LoraOptions>(&adapters.options());
  require<ConfigError>(lora != nullptr && lora->init == "eva",
                       "[adapters.eva] the adapter must be LoRA with init \"eva\"; found {}; inject it so",
                       lora == nullptr ? method_name(adapters.options()) : fmt::format("init {:?}", lora->init));
  const bool merged =
      std::ranges::any_of(adapters.slots(), [](const auto& slot) { return !adapters::slot_of(slot).merged().empty(); });
  require<ConfigError>(active_adapters(model) == std::vector{adapters.name()} && !merged,
                       "[adapters.eva] the adapter must be the only active one, and not merged; found [{}]; set it active",
                       fmt::join(active_adapters(model), ", "));
  require<ConfigError>(options.rho >= 1 && std::isfinite(options.rho), "[adapters.eva] rho must be at least 1; found {}",
                       options.rho);
  require<ConfigError>(options.tau >= 0 && options.tau <= 1, "[adapters.eva] tau must be in [0, 1]; found {}", options.tau);
  require<ConfigError>(options.most_batches >= 1, "[adapters.eva] most_batches must be at least 1; found {}",
                       options.most_batches);
  return *lora;
}

/// Which of a batch's B * S positions count.
at::Tensor counted_positions(const Batch& batch, const EvaOptions& options, const at::Device& device) {
  at::Tensor counts = at::ones_like(batch.input_ids_BS, at::kBool);
  if (batch.attention_mask_BS.defined()) counts = counts.logical_and(batch.attention_mask_BS.to(at::kBool));
  if (!batch.segment_lengths.empty()) counts.slice(1, batch.num_tokens).fill_(false);  // what pads a packed row
  if (options.use_label_mask && batch.labels_BS.defined()) {
    counts = counts.logical_and(batch.labels_BS != options.label_mask_value);
  }
  return counts.flatten().nonzero().flatten().to(device);
}

at::Tensor counted_rows(const at::Tensor& x, const at::Tensor& positions_N, const std::string& path) {
  const at::Tensor rows_ND = x.reshape({-1, x.size(-1)}).index_select(0, positions_N.to(x.device()));
  require<NonFiniteError>(rows_ND.isfinite().all().item<bool>(),
                          "[adapters.eva] a layer's inputs must be finite; found others in {}; load the model in fp32 or bf16",
                          path);
  return rows_ND;
}

std::string digest_of(const at::Tensor& rows_ND) {
  const at::Tensor held = rows_ND.cpu().contiguous();
  return digest(std::span(static_cast<const std::byte*>(held.const_data_ptr()), held.nbytes()));
}

/// A layer that is to start so.
struct Layer {
  std::string path;
  nn::Linear linear;
  LoraSize size;
  int64_t most = 0;   ///< directions that it may get
  int64_t rank = 0;   ///< that it would get now
  size_t source = 0;  ///< the first layer with the same input, whose sums it shares
};

/// The sums of one input.
struct Input {
  IncrementalPca pca;
  at::Tensor found_R;      ///< bool: which directions did not turn with the last batch
  bool converged = false;  ///< all of those that are wanted now
};

/// PEFT's loop: batches until the directions that the ranks of now ask for stand still.
class EvaSearch {
 public:
  EvaSearch(nn::CausalLMImpl& model, const AdapterSet& adapters, const LoraOptions& lora, const EvaOptions& options)
      : model_(model), options_(options) {
    for (const auto& slot : adapters.slots()) {
      if (slot.linear.is_empty()) {
        log::warn(
            fmt::format("[adapters.eva] {} is an embedding, which has no inputs that vary: it begins as with true", slot.path));
        continue;
      }
      Layer layer{.path = slot.path, .linear = slot.linear, .size = lora_size(lora, slot.path)};
      // Ties to even, as Python's round; more directions than inputs there are not.
      const int64_t most = std::llrint(std::min(static_cast<double>(layer.size.rank) * options.rho, 1e9));
      layer.most = std::min(most, slot.linear->options.in_features);
      budget_ += layer.size.rank;
      reads_head_ = reads_head_ || slot.linear.get() == model.head().get();
      layers_.push_back(std::move(layer));
    }
    require<ConfigError>(!layers_.empty(), "[adapters.eva] some target must be a Linear; found none; name others");
  }

  EvaReport run(const std::function<Batch(int64_t)>& batch) {
    EvaReport report;
    Batch now = batch(0);
    find_equal_inputs(now);
    for (int64_t i = 0;; ++i) {
      if (all_converged()) {
        report.converged = true;
        break;
      }
      if (i == options_.most_batches) break;
      if (i > 0) now = batch(i);
      add(now);
      ++report.batches;
      if (std::ranges::none_of(inputs_, [](const auto& entry) { return entry.second.pca.is_empty(); })) distribute_ranks();
    }
    require_found();
    if (!report.converged) {
      log::warn(
          fmt::format("[adapters.eva] directions should stand still to a cosine of {}; some still turn after {} batches, and are "
                      "taken as they are; lower tau, or use larger batches",
                      options_.tau, report.batches));
    }
    for (const auto& layer : layers_) report.layers.push_back({layer.path, layer.rank, alpha_of(layer)});
    return report;
  }

  /// A of a layer with at least one direction.
  at::Tensor directions(const std::string& path) const {
    const auto layer = std::ranges::find(layers_, path, &Layer::path);
    const auto& pca = inputs_.at(layer->source).pca;
    const at::Tensor found_RD = pca.components().slice(0, 0, layer->rank);
    return options_.whiten ? found_RD / pca.singular_values().slice(0, 0, layer->rank).sqrt().unsqueeze(1) : found_RD;
  }

 private:
  void pass(const Batch& batch) {
    const at::NoGradGuard no_grad;
    const at::Tensor states = model_.hidden(batch);
    if (reads_head_) model_.logits_of(states);
  }

  at::Device device() const { return layers_.front().linear->weight.device(); }

  void find_equal_inputs(const Batch& first) {
    const Batch batch = first.to(device());
    const at::Tensor positions_N = counted_positions(batch, options_, device());
    std::map<std::string, size_t> sources;
    {
      Observation observation(model_);
      for (size_t i = 0; i < layers_.size(); ++i) {
        observation.observe(layers_[i].linear, [&, i](const at::Tensor& x) {
          layers_[i].source = sources.emplace(digest_of(counted_rows(x, positions_N, layers_[i].path)), i).first->second;
        });
      }
      pass(batch);
    }
    std::map<size_t, int64_t> most;
    for (const auto& layer : layers_) most[layer.source] = std::max(most[layer.source], layer.most);
    for (auto& layer : layers_) layer.rank = layer.most = most[layer.source];
    for (const auto& [source, count] : most) inputs_.emplace(source, Input{IncrementalPca(count), at::zeros({count}, at::kBool)});
  }

  bool all_converged() {
    for (auto& [source, input] : inputs_) {
      input.converged = input.found_R.slice(0, 0, layers_[source].rank).all().item<bool>();
    }
    return std::ranges::all_of(inputs_, [](const auto& entry) { return entry.second.converged; });
  }

  void add(const Batch& given) {
    const Batch batch = given.to(device());
    const at::Tensor positions_N = counted_positions(batch, options_, device());
    most_positions_ = std::max(most_positions_, positions_N.numel());
    Observation observation(model_);
    std::vector<std::pair<Input*, at::Tensor>> waiting;
    const auto most_waiting = batch.input_ids_BS.is_cpu() ? static_cast<size_t>(at::get_num_threads()) : 1;
    for (auto& [source, input] : inputs_) {
      if (input.converged || positions_N.numel() < input.pca.wanted()) continue;
      observation.observe(layers_[source].linear, [&, path = layers_[source].path, input = &input](const at::Tensor& x) {
        waiting.emplace_back(input, counted_rows(x, positions_N, path));
        if (waiting.size() == most_waiting) add_rows(waiting);
      });
    }
    pass(batch);
    add_rows(waiting);
  }

  /// Each thread takes inputs of its own: their sums are made of many small products, in which threads would mostly wait for each
  /// other.
  void add_rows(std::vector<std::pair<Input*, at::Tensor>>& waiting) {
    at::parallel_for(0, static_cast<int64_t>(waiting.size()), 1, [&](int64_t i, int64_t end) {
      for (; i < end; ++i) {
        const auto& [input, rows_ND] = waiting[static_cast<size_t>(i)];
        const at::NoGradGuard no_grad;
        const at::Tensor former_RD = input->pca.components();
        input->pca.add(rows_ND);
        if (former_RD.defined())
          input->found_R = (at::cosine_similarity(input->pca.components(), former_RD) >= options_.tau).cpu();
      }
    });
    waiting.clear();
  }

  /// The budget goes to the directions that explain most. Of layers with the same input the first, whose sums decide when to
  /// stop, gets the most of them.
  void distribute_ranks() {
    struct Direction {
      double explains;
      Layer* layer;
    };
    std::vector<Direction> all;
    const auto add_directions = [&](Layer& layer) {
      const at::Tensor ratio_R =
          inputs_.at(layer.source).pca.explained_ratio().slice(0, 0, layer.most).to(at::kCPU, at::kDouble).contiguous();
      for (const double explains : std::span(ratio_R.const_data_ptr<double>(), static_cast<size_t>(ratio_R.numel()))) {
        all.push_back({explains, &layer});
      }
    };
    for (size_t i = 0; i < layers_.size(); ++i) {
      if (layers_[i].source == i) add_directions(layers_[i]);
    }
    for (size_t i = 0; i < layers_.size(); ++i) {
      if (layers_[i].source != i) add_directions(layers_[i]);
    }
    std::ranges::stable_sort(all, std::greater(), &Direction::explains);
    for (auto& layer : layers_) layer.rank = 0;
    for (size_t i = 0; i < std::min(all.size(), static_cast<size_t>(budget_)); ++i) ++all[i].layer->rank;
    for (auto& layer : layers_) {
      Layer& first = layers_[layer.source];
      if (first.rank < layer.rank) std::swap(first.rank, layer.rank);
    }
  }

  void require_found() const {
    for (const auto& [source, input] : inputs_) {
      require<DataError>(
          !input.pca.is_empty(),
          "[adapters.eva] a batch must have {} counted positions for {}; found {} at most; use larger batches, a smaller "
          "r or rho, or use_label_mask: false",
          input.pca.wanted(), layers_[source].path, most_positions_);
    }
  }

  double alpha_of(const Layer& layer) const {
    if (!options_.adjust_scaling_factors || layer.rank == layer.size.rank) return layer.size.alpha;
    return layer.size.alpha * (static_cast<double>(layer.rank) / static_cast<double>(layer.size.rank));
  }

  nn::CausalLMImpl& model_;
  EvaOptions options_;
  std::vector<Layer> layers_;
  std::map<size_t, Input> inputs_;  ///< by the first layer that has it
  int64_t budget_ = 0, most_positions_ = 0;
  bool reads_head_ = false;
};

/// The options of the adapter with these ranks.
LoraOptions with_ranks(LoraOptions options, const AdapterSet& adapters, const std::map<std::string, EvaLayer>& layers) {
  const LoraOptions before = options;
  std::vector<std::string> targets;
  options.rank_pattern.clear();
  options.alpha_pattern.clear();
  for (const auto& slot : adapters.slots()) {
    const auto found = layers.find(slot.path);
    const LoraSize size = lora_size(before, slot.path);
    const int64_t rank = found == layers.end() ? size.rank : found->second.rank;
    const double alpha = found == layers.end() ? size.alpha : found->second.alpha;
    if (rank == 0) continue;
    targets.push_back(slot.path);
    if (rank != options.rank) options.rank_pattern.emplace_back(slot.path, rank);
    if (alpha != options.alpha) options.alpha_pattern.emplace_back(slot.path, alpha);
  }
  options.targets = targets;
  return options;
}

}  // namespace

EvaReport initialize_eva(nn::CausalLMImpl& model, const AdapterSet& adapters, const std::function<Batch(int64_t)>& batch,
                         const EvaOptions& options) {
  const LoraOptions lora = require_eva(model, adapters, options);
  EvaSearch search(model, adapters, lora, options);
  EvaReport report;
  {
    const BaseAlone base_alone(model);
    report = search.run(batch);
  }
  std::map<std::string, EvaLayer> layers;
  for (const auto& layer : report.layers) layers.emplace(layer.path, layer);
  adapters::refit_lora(model, adapters, with_ranks(lora, adapters, layers),
                       [&](const std::string& path) { return !layers.contains(path) || layers.at(path).rank > 0; });
  const torch::NoGradGuard no_grad;
  for (const auto& slot : adapters.slots()) {
    if (!slot.linear.is_empty()) dynamic_cast<LoraLinear&>(*slot.adapter).lora_A.copy_(search.directions(slot.path));
  }
  return report;
}

EvaReport initialize_eva(nn::CausalLMImpl& model, const AdapterSet& adapters, const std::vector<Batch>& batches,
                         const EvaOptions& options) {
  require<DataError>(!batches.empty(), "[adapters.eva] some batch must be given; found none");
  return initialize_eva(
      model, adapters, [&](int64_t i) { return batches[static_cast<size_t>(i) % batches.size()]; }, options);
}

}  // namespace lora
