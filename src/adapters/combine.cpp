#include "lora/adapters/combine.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "adapters/listing.h"
#include "adapters/peft_names.h"
#include "core/check.h"
#include "lora/adapters/adapter_io.h"
#include "lora/adapters/inject.h"
#include "lora/adapters/low_rank.h"
#include "lora/core/pattern.h"

// Legend: O outputs, I inputs, R rank, N adapters of a module.
namespace lora {
namespace {

using at::Tensor;

enum class Pruning { kNone, kMagnitude, kRandom };

/// A combination type as what it does.
struct Rule {
  const char* type;
  bool stacks = false;      ///< cat: the factors stand one behind the other
  bool decomposes = false;  ///< works on whole updates and takes them apart again
  Pruning pruning = Pruning::kNone;
  bool elects = false;  ///< only values of the majority's sign count
};

constexpr Rule kRules[] = {{.type = "cat", .stacks = true},
                           {.type = "linear"},
                           {.type = "svd", .decomposes = true},
                           {.type = "magnitude_prune", .pruning = Pruning::kMagnitude},
                           {.type = "ties", .pruning = Pruning::kMagnitude, .elects = true},
                           {.type = "dare_linear", .pruning = Pruning::kRandom},
                           {.type = "dare_ties", .pruning = Pruning::kRandom, .elects = true},
                           {.type = "magnitude_prune_svd", .decomposes = true, .pruning = Pruning::kMagnitude},
                           {.type = "ties_svd", .decomposes = true, .pruning = Pruning::kMagnitude, .elects = true},
                           {.type = "dare_linear_svd", .decomposes = true, .pruning = Pruning::kRandom},
                           {.type = "dare_ties_svd", .decomposes = true, .pruning = Pruning::kRandom, .elects = true}};

Rule rule_of(const std::string& type) {
  const auto found = std::ranges::find_if(kRules, [&](const Rule& rule) { return rule.type == type; });
  require<ConfigError>(found != std::end(kRules),
                       "[combine] the combination type must be one of {}; found {:?}; use cat for "
                       "the exact sum",
                       fmt::join(combination_types(), ", "), type);
  return *found;
}

void check_options(const Rule& rule, const CombineOptions& options) {
  const bool prunes = rule.pruning != Pruning::kNone;
  require<ConfigError>(!prunes || options.density,
                       "[combine] {} needs a density, the share of numbers that are kept; found "
                       "none; give for example 0.5",
                       rule.type);
  const double density = options.density.value_or(1);
  require<ConfigError>(density > 0 && density <= 1,
                       "[combine] the density must be over 0 and at most 1; found {}; give for "
                       "example 0.5",
                       density);
  require<ConfigError>(options.svd_rank.value_or(1) >= 1,
                       "[combine] svd_rank must be at least 1; found {}; leave it out for "
                       "the largest rank",
                       options.svd_rank.value_or(1));
  const double clamp = options.svd_clamp.value_or(1);
  require<ConfigError>(clamp > 0 && clamp <= 1,
                       "[combine] svd_clamp is a quantile over 0 and at most 1; found {}; leave it "
                       "out for none",
                       clamp);
  const auto& sign = options.majority_sign_method;
  require<ConfigError>(sign == "total" || sign == "frequency",
                       "[combine] majority_sign_method must be total or frequency; "
                       "found {:?}; use total",
                       sign);
}

/// One module's updates in those adapters that have it.
struct Parts {
  std::vector<LowRankValue> values = {};
  std::vector<double> weights = {};
};

struct Factors {
  Tensor a_RI, b_OR;
};

/// Combines one module after another.
class Combiner {
 public:
  Combiner(const Rule& rule, const CombineOptions& options, int64_t rank)
      : rule_(rule), options_(options), rank_(rank), masks_(at::detail::createCPUGenerator(options.seed)) {}

  Factors combine(const Parts& parts) {
    const Factors found = rule_.stacks ? stacked(parts) : rule_.decomposes ? decomposed(parts) : added(parts);
    return {padded(found.a_RI, 0), padded(found.b_OR, 1)};
  }

 private:
  static Factors stacked(const Parts& parts) {
    std::vector<Tensor> a, b;
    for (size_t i = 0; i < parts.values.size(); ++i) {
      a.push_back(parts.values[i].a_RI * parts.weights[i] * parts.values[i].scale);
      b.push_back(parts.values[i].b_OR);
    }
    return {at::cat(a, 0), at::cat(b, 1)};
  }

  /// Half of each weight goes to either factor, its sign to A.
  Factors added(const Parts& parts) {
    std::vector<Tensor> a, b;
    std::vector<double> a_weights, b_weights;
    for (size_t i = 0; i < parts.values.size(); ++i) {
      const auto& value = parts.values[i];
      require<ConfigError>(value.a_RI.size(0) == parts.values.front().a_RI.size(0),
                           "[combine] {} needs equal ranks; found {} and {} at {}; use cat or svd", rule_.type,
                           parts.values.front().a_RI.size(0), value.a_RI.size(0), adapters::quote_name(value.path));
      const double weight = parts.weights[i] * value.scale, root = std::sqrt(std::abs(weight));
      a_weights.push_back(weight >= 0 ? root : -root);
      b_weights.push_back(root);
      a.push_back(value.a_RI);
      b.push_back(value.b_OR);
    }
    const Tensor a_RI = sum(a, a_weights);  // before B: the masks' order is part of the seed's meaning
    return {a_RI, sum(b, b_weights)};
  }

  Factors decomposed(const Parts& parts) {
    // What a clamp cuts depends on the singular vectors' signs, which are those of PEFT's decomposition of the whole sum alone.
    if (rule_.pruning == Pruning::kNone && !options_.svd_clamp) return largest(decomposition_of_factors(parts));
    std::vector<Tensor> updates;
    for (const auto& value : parts.values) updates.push_back(value.b_OR.mm(value.a_RI) * value.scale);
    return largest(at::linalg_svd(sum(updates, parts.weights), /*full_matrices=*/false));
  }

  /// The singular values of the sum of w s B A without making it: those of the small middle of Q_b
  /// (R_b R_a^T) Q_a^T.
  static std::tuple<Tensor, Tensor, Tensor> decomposition_of_factors(const Parts& parts) {
    const Factors all = stacked(parts);
    const auto [qb_OR, rb] = at::linalg_qr(all.b_OR.to(at::kDouble));
    const auto [qa_IR, ra] = at::linalg_qr(all.a_RI.to(at::kDouble).t());
    const auto [u, s, vh] = at::linalg_svd(rb.mm(ra.t()), /*full_matrices=*/false);
    return {qb_OR.mm(u), s, vh.mm(qa_IR.t())};
  }

  /// B = U S, A = V^T, of the largest singular values.
  Factors largest(const std::tuple<Tensor, Tensor, Tensor>& decomposition) const {
    const auto& [u, s, vh] = decomposition;
    const int64_t kept = std::min(rank_, s.size(0));
    Tensor a_RI = vh.slice(0, 0, kept).to(at::kFloat), b_OR = (u * s).slice(1, 0, kept).to(at::kFloat);
    if (!options_.svd_clamp) return {a_RI, b_OR};
    const double high = quantile(at::cat({b_OR.flatten(), a_RI.flatten()}), *options_.svd_clamp);
    return {a_RI.clamp(-high, high), b_OR.clamp(-high, high)};
  }

  /// Between the two numbers beside it, as torch.quantile, which takes no more than 16 million.
  static double quantile(const Tensor& numbers, double share) {
    const Tensor sorted = std::get<0>(numbers.sort());
    const double place = share * static_cast<double>(sorted.numel() - 1), below = std::floor(place);
    const auto at_place = [&](double index) { return sorted[static_cast<int64_t>(index)].item<double>(); };
    return at_place(below) + (at_place(std::ceil(place)) - at_place(below)) * (place - below);
  }

  /// sum of w_i t_i over what the rule keeps.
  Tensor sum(std::vector<Tensor> tensors, const std::vector<double>& weights) {
    for (Tensor& tensor : tensors) tensor = pruned(tensor);
    const Tensor stack = at::stack(tensors);
    std::vector<int64_t> along_first(static_cast<size_t>(stack.dim()), 1);
    along_first[0] = -1;
    const Tensor weighted = stack * at::tensor(weights, stack.options()).view(along_first);
    if (!rule_.elects) return weighted.sum(0);
    const Tensor counts = majority(stack);
    return (weighted * counts).sum(0) / counts.sum(0).clamp_min(1);
  }

  /// True where a number has the sign of all of them together.
  Tensor majority(const Tensor& stack) const {
    const Tensor signs = stack.sign();
    const Tensor together = options_.majority_sign_method == "total" ? stack.sum(0) : signs.sum(0);
    return signs == at::where(together >= 0, 1, -1);
  }

  Tensor pruned(const Tensor& tensor) {
    const double density = options_.density.value_or(1);
    if (rule_.pruning == Pruning::kNone || density >= 1) return tensor;
    if (rule_.pruning == Pruning::kRandom) return tensor * at::bernoulli(at::full_like(tensor, density), masks_) / density;
    const auto kept = static_cast<int64_t>(density * static_cast<double>(tensor.numel()));
    const Tensor places = std::get<1>(at::topk(tensor.abs().flatten(), kept));
    return tensor * at::zeros({tensor.numel()}, tensor.options()).index_fill_(0, places, 1).view(tensor.sizes());
  }

  /// With zeros up to the new adapter's rank, which is one for all modules.
  Tensor padded(const Tensor& factor, int64_t dim) const {
    const int64_t missing = rank_ - factor.size(dim);
    if (missing <= 0) return factor.contiguous();
    std::vector<int64_t> shape = factor.sizes().vec();
    shape[static_cast<size_t>(dim)] = missing;
    return at::cat({factor, at::zeros(shape, factor.options())}, dim);
  }

  Rule rule_;
  CombineOptions options_;
  int64_t rank_;
  at::Generator masks_;
};

int64_t largest_rank(const LoraOptions& options) {
  int64_t rank = options.rank;
  for (const auto& entry : options.rank_pattern) rank = std::max(rank, entry.second);
  return rank;
}

int64_t new_rank(const Rule& rule, const CombineOptions& combine, const std::vector<LoraOptions>& options) {
  std::vector<int64_t> ranks;
  for (const auto& one : options) ranks.push_back(largest_rank(one));
  const auto [least, most] = std::ranges::minmax(ranks);
  if (rule.stacks) {
    int64_t sum = 0;
    for (const int64_t rank : ranks) sum += rank;
    return sum;
  }
  if (rule.decomposes) return combine.svd_rank.value_or(most);
  require<ConfigError>(least == most, "[combine] {} needs adapters of one rank; found {}; use cat or svd", rule.type,
                       fmt::join(ranks, ", "));
  return most;
}

/// The targets of all together, where that is said as each says its own.
std::variant<std::vector<std::string>, std::string> united_targets(const std::vector<LoraOptions>& options) {
  std::set<std::string> names, expressions;
  for (const auto& one : options) {
    if (const auto* expression = std::get_if<std::string>(&one.targets)) {
      expressions.insert(*expression);
    } else {
      const auto& list = std::get<std::vector<std::string>>(one.targets);
      names.insert(list.begin(), list.end());
    }
  }
  require<ConfigError>(names.empty() || expressions.empty(),
                       "[combine] target_modules must be lists in all adapters or an "
                       "expression in all; found both; write them in one form");
  if (expressions.empty()) return std::vector<std::string>(names.begin(), names.end());
  return expressions.size() == 1 ? *expressions.begin() : fmt::format("({})", fmt::join(expressions, ")|("));
}

/// Whether the united targets mean the modules that the adapters have between them.
bool agree_on_layers(const std::vector<LoraOptions>& options) {
  return std::ranges::all_of(options, [&](const LoraOptions& one) {
    const auto& first = options.front();
    const auto* expression = std::get_if<std::string>(&one.targets);
    const bool all_linear = expression != nullptr && TargetRule{.targets = *expression}.is_all_linear();
    return one.exclude == first.exclude && one.layers_to_transform == first.layers_to_transform &&
           one.layers_pattern == first.layers_pattern && (!all_linear || one.targets == first.targets);
  });
}

std::string module_of(const std::string& parameter) { return parameter.substr(0, parameter.rfind('.')); }

/// What exactly one adapter trains whole, by name.
std::map<std::string, Tensor> united_parameters(const std::vector<LowRankAdapter>& adapters,
                                                const std::map<std::string, Parts>& modules) {
  std::map<std::string, Tensor> united;
  for (const auto& adapter : adapters) {
    for (const auto& [name, tensor] : adapter.others) {
      const auto quoted = adapters::quote_name(name);
      const std::string part = part_of_method(name);
      const bool is_bias = part == "a bias";
      require<ShapeError>(is_bias || part.find("trained whole") != std::string::npos,
                          "[combine] adapters must be LoRA; found {} ({}); merge the adapter instead", part, quoted);
      require<ConfigError>(united.emplace(name, tensor.to(at::kFloat)).second && (is_bias || !modules.contains(module_of(name))),
                           "[combine] a parameter may be trained by one of the adapters only when "
                           "it is trained whole; found {} "
                           "in another, too; combine adapters that leave it alone",
                           quoted);
    }
  }
  return united;
}

LoraOptions combined_options(const std::vector<LoraOptions>& options, int64_t rank, const std::map<std::string, Parts>& modules) {
  LoraOptions combined = options.front();
  combined.rank = rank;
  combined.alpha = static_cast<double>(rank);
  combined.rank_stabilized = false;
  combined.init = "true";
  combined.rank_pattern.clear();
  combined.alpha_pattern.clear();
  combined.targets = united_targets(options);
  if (!agree_on_layers(options)) {
    std::vector<std::string> paths;
    for (const auto& entry : modules) paths.push_back(entry.first);
    combined.targets = paths;
    combined.exclude = std::vector<std::string>{};
    combined.layers_to_transform.reset();
    combined.layers_pattern.clear();
  }
  std::set<std::string> saved;
  for (const auto& one : options) {
    saved.insert(one.modules_to_save.begin(), one.modules_to_save.end());
    if (combined.bias == "none") combined.bias = one.bias;
  }
  combined.modules_to_save.assign(saved.begin(), saved.end());
  return combined;
}

/// PEFT's names: a Linear's factors are modules, an Embedding's bare parameters.
void add_factors(io::AdapterFiles& files, const std::string& path, bool embedding, const Factors& factors) {
  const std::string start = std::string(adapters::kFilePrefix) + path + (embedding ? ".lora_embedding_" : ".lora_");
  const std::string end = embedding ? "" : ".weight";
  files.tensors[start + "A" + end] = factors.a_RI;
  files.tensors[start + "B" + end] = factors.b_OR;
}

}  // namespace

std::vector<std::string> combination_types() {
  std::vector<std::string> types;
  for (const Rule& rule : kRules) types.emplace_back(rule.type);
  return types;
}

io::AdapterFiles combine_adapters(const std::vector<io::AdapterFiles>& adapters, const std::vector<double>& weights,
                                  const CombineOptions& options) {
  const bool weighted = std::ranges::all_of(weights, [](double weight) { return std::isfinite(weight); });
  require<ConfigError>(!adapters.empty() && adapters.size() == weights.size() && weighted,
                       "[combine] there must be adapters, and one finite weight for each; found {} "
                       "and the weights {}; give "
                       "as many weights",
                       adapters.size(), fmt::join(weights, ", "));
  const Rule asked = rule_of(options.type), rule = adapters.size() == 1 ? rule_of("linear") : asked;
  check_options(rule, options);

  std::vector<LowRankAdapter> plain;
  std::vector<LoraOptions> each;
  std::map<std::string, Parts> modules;
  for (size_t i = 0; i < adapters.size(); ++i) {
    plain.push_back(low_rank_adapter(adapters[i]));
    each.push_back(lora_options_from(adapters[i].config));
    for (const LowRankValue& value : plain.back().updates) {
      modules[value.path].values.push_back(value);
      modules[value.path].weights.push_back(weights[i]);
    }
  }
  const int64_t rank = new_rank(rule, options, each);
  io::AdapterFiles combined;
  combined.config = config_from(combined_options(each, rank, modules));
  for (const auto& [name, tensor] : united_parameters(plain, modules))
    combined.tensors[std::string(adapters::kFilePrefix) + name] = tensor;
  Combiner combiner(rule, options, rank);
  for (const auto& [path, parts] : modules) {
    const auto& first = parts.values.front();
    const bool alike = std::ranges::all_of(parts.values, [&](const LowRankValue& value) {
      return value.embedding == first.embedding && value.a_RI.size(1) == first.a_RI.size(1) &&
             value.b_OR.size(0) == first.b_OR.size(0);
    });
    require<ShapeError>(alike,
                        "[combine] adapters must be of one model; found {} of different shapes; "
                        "combine adapters of the "
                        "same base",
                        adapters::quote_name(path));
    add_factors(combined, path, first.embedding, combiner.combine(parts));
  }
  return combined;
}

AdapterSet add_weighted_adapter(torch::nn::Module& model, const std::vector<std::string>& names,
                                const std::vector<double>& weights, const std::string& new_name, const CombineOptions& options) {
  const auto sets = adapters_of(model);
  std::vector<io::AdapterFiles> files;
  for (const auto& name : names) {
    const auto found = std::ranges::find_if(sets, [&](const AdapterSet& set) { return set.name() == name; });
    require<ConfigError>(found != sets.end(),
                         "[combine] the model must have an adapter {:?}; found none of that name; load it "
                         "first",
                         name);
    files.push_back(adapter_to_files(*found));
  }
  const io::AdapterFiles combined = combine_adapters(files, weights, options);
  const auto active = active_adapters(model);
  AdapterSet added = adapter_from_files(model, combined, new_name);
  set_active_adapters(model, active);
  return added;
}

}  // namespace lora
