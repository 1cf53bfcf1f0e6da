#include "lora/adapters/combine.h"

#include "adapters/fake_llama.h"
#include "formats/json.h"
#include "lora/adapters/adapter_io.h"
#include "lora/adapters/inject.h"
#include "lora/adapters/low_rank.h"
#include "lora/core/error.h"
#include "lora/core/file.h"
#include "lora/io/safetensors.h"
#include "lora_config.h"
#include "support.h"

using namespace lora;
using testing::difference;
using testing::FakeLlama;
using testing::lora_config;
using testing::message_of;
using Names = std::vector<std::string>;

namespace {

Path combine_reference() { return testing::reference_folder() / "combine"; }
Path peft_reference() { return testing::reference_folder() / "peft/multi_adapter"; }

std::vector<io::AdapterFiles> read_all(const Path& folder, const Names& names) {
  std::vector<io::AdapterFiles> files;
  for (const auto& name : names) files.push_back(io::read_adapter_files(folder / name));
  return files;
}

CombineOptions options_of(const formats::Json& item) {
  CombineOptions options;
  options.type = item.at("combination_type").get<std::string>();
  if (item.contains("svd_rank")) options.svd_rank = item.at("svd_rank").get<int64_t>();
  if (item.contains("density")) options.density = item.at("density").get<double>();
  options.majority_sign_method = item.value("majority_sign_method", options.majority_sign_method);
  options.seed = item.value("seed", uint64_t{0});
  return options;
}

const LowRankValue& at_path(const LowRankAdapter& adapter, const std::string& path) {
  const auto found = std::ranges::find_if(adapter.updates, [&](const auto& value) { return value.path == path; });
  REQUIRE(found != adapter.updates.end());
  return *found;
}

at::Tensor update_of(const LowRankValue& value) { return value.b_OR.mm(value.a_RI) * value.scale; }

/// scale * B A of every module.
std::map<std::string, at::Tensor> updates_of(const io::AdapterFiles& files) {
  std::map<std::string, at::Tensor> updates;
  for (const auto& value : low_rank_adapter(files).updates) updates[value.path] = update_of(value);
  return updates;
}

/// A file set of plain tensors, every module of the same shape.
io::AdapterFiles made_files(int64_t rank, const Names& paths) {
  io::AdapterFiles files;
  lora_config(files).r = rank;
  lora_config(files).lora_alpha = static_cast<double>(rank);
  lora_config(files).target_modules = paths;
  for (const auto& path : paths) {
    files.tensors["base_model.model." + path + ".lora_A.weight"] = at::randn({rank, 40});
    files.tensors["base_model.model." + path + ".lora_B.weight"] = at::randn({30, rank});
  }
  return files;
}

template <class E>
std::string refusal(const std::vector<io::AdapterFiles>& files, const std::vector<double>& weights,
                    const CombineOptions& options = {}) {
  return message_of<E>([&] { combine_adapters(files, weights, options); });
}

}  // namespace

TEST_CASE("weighted combinations are PEFT's", "[adapters]") {
  const auto expected = io::load_safetensors(combine_reference() / "expected.safetensors");
  const auto cases = formats::parse_json(read_file(combine_reference() / "cases.json"), "cases.json");
  for (const auto& item : cases.at("cases")) {
    const auto name = item.at("name").get<std::string>();
    INFO(name);
    const auto files = combine_adapters(read_all(combine_reference(), item.at("adapters").get<Names>()),
                                        item.at("weights").get<std::vector<double>>(), options_of(item));
    const auto adapter = low_rank_adapter(files);
    const auto of_case = [&](const auto& entry) {
      return entry.first.starts_with(name + "/") && entry.first.ends_with("/delta");
    };
    CHECK(static_cast<std::ptrdiff_t>(adapter.updates.size()) == std::ranges::count_if(expected, of_case));
    for (const auto& value : adapter.updates) {
      INFO(value.path);
      const auto at = name + "/" + value.path + "/";
      CHECK(value.scale == 1);
      CHECK(value.embedding == (value.path == "table"));
      CHECK(value.a_RI.size(0) == expected.at(at + "A").size(0));
      CHECK(difference(update_of(value), expected.at(at + "delta")) < 2e-5);
      // A pair of singular vectors may point the other way.
      if (item.at("combination_type").get<std::string>().ends_with("svd") && name != "linear_one") continue;
      CHECK(difference(value.a_RI, expected.at(at + "A")) < 1e-6);
      CHECK(difference(value.b_OR, expected.at(at + "B")) < 1e-6);
    }
  }
}

TEST_CASE("the reference's two adapters combine to its files", "[adapters]") {
  const auto expected = io::load_safetensors(peft_reference() / "expected.safetensors");
  const auto files = read_all(peft_reference(), {"a", "b"});
  for (const std::string type : {"linear", "cat", "svd"}) {
    INFO(type);
    const auto combined = combine_adapters(files, {0.7, -0.4}, {.type = type});
    for (const auto& [path, update] : updates_of(combined)) {
      const std::string place = path.substr(std::string("model.").size());
      const std::string short_place = place.substr(0, place.find(".self_attn")) + place.substr(place.rfind('.'));
      CHECK(difference(update, expected.at("delta." + type + "." + short_place)) < 1e-5);
    }
    if (type == "svd") continue;
    const auto theirs = io::read_adapter_files(peft_reference() / ("w_" + type));
    CHECK(lora_config(combined).r == lora_config(theirs).r);
    CHECK(lora_config(combined).lora_alpha == lora_config(theirs).lora_alpha);
    CHECK(lora_config(combined).target_modules == lora_config(theirs).target_modules);
    REQUIRE(combined.tensors.size() == theirs.tensors.size());
    for (const auto& [name, tensor] : theirs.tensors) CHECK(difference(combined.tensors.at(name), tensor) < 1e-6);
  }
}

TEST_CASE("cat is the exact sum, also of rsLoRA adapters", "[adapters]") {
  at::manual_seed(1);
  auto first = made_files(4, {"up"}), second = made_files(2, {"up", "down"});
  lora_config(first).use_rslora = true;
  lora_config(first).lora_alpha = 3;
  const auto sum = updates_of(combine_adapters({first, second}, {0.5, -2}, {.type = "cat"}));
  const auto a = updates_of(first), b = updates_of(second);
  CHECK(difference(sum.at("up"), a.at("up") * 0.5 - b.at("up") * 2) < 1e-5);
  CHECK(difference(sum.at("down"), b.at("down") * -2) < 1e-5);
  CHECK(a.at("up").abs().max().item<double>() > 1);
}

TEST_CASE("svd is the best approximation of its rank", "[adapters]") {
  at::manual_seed(2);
  const auto first = made_files(4, {"up"}), second = made_files(3, {"up"});
  const at::Tensor sum = updates_of(first).at("up") + updates_of(second).at("up");
  const at::Tensor singular = at::linalg_svdvals(sum.to(at::kDouble));
  for (const int64_t rank : {1, 3, 7, 9}) {
    INFO(rank);
    const auto combined = combine_adapters({first, second}, {1, 1}, {.type = "svd", .svd_rank = rank});
    CHECK(lora_config(combined).r == rank);
    const double error = (updates_of(combined).at("up") - sum).norm().item<double>();
    const double least = singular.slice(0, std::min<int64_t>(rank, 7)).norm().item<double>();
    CHECK(std::abs(error - least) < 1e-4);
  }
}

TEST_CASE("svd_clamp cuts at the quantile of both factors of the whole sum's decomposition, as PEFT does", "[adapters]") {
  at::manual_seed(3);
  const std::vector<io::AdapterFiles> files = {made_files(4, {"up"}), made_files(4, {"up"})};
  at::Tensor sum;
  for (const auto& file : files) {
    const LowRankAdapter adapter = low_rank_adapter(file);
    const auto& value = at_path(adapter, "up");
    const at::Tensor update = value.b_OR.mm(value.a_RI) * value.scale;
    sum = sum.defined() ? sum + update : update;
  }
  const auto [u, s, vh] = at::linalg_svd(sum, /*full_matrices=*/true);
  const at::Tensor a = vh.slice(0, 0, 4), b = u.slice(1, 0, 4) * s.slice(0, 0, 4);
  const auto cut = low_rank_adapter(combine_adapters(files, {1, 1}, {.svd_clamp = 0.9}));
  const double high = at::quantile(at::cat({b.flatten(), a.flatten()}), 0.9).item<double>();
  CHECK(difference(at_path(cut, "up").a_RI, a.clamp(-high, high)) < 1e-6);
  CHECK(difference(at_path(cut, "up").b_OR, b.clamp(-high, high)) < 1e-5);
  CHECK(b.max().item<double>() > high);
}

TEST_CASE("dare keeps a share of the numbers, scaled up, by its seed", "[adapters]") {
  at::manual_seed(4);
  const std::vector<io::AdapterFiles> files = {made_files(16, {"up"})};
  const std::vector<io::AdapterFiles> two = {files[0], made_files(16, {"down"})};
  const auto combined = [&](uint64_t seed) {
    return low_rank_adapter(combine_adapters(two, {1, 1}, {.type = "dare_linear", .density = 0.3, .seed = seed}));
  };
  const auto once = combined(1), again = combined(1), other = combined(2);
  const at::Tensor plain = at_path(low_rank_adapter(files[0]), "up").a_RI, a = at_path(once, "up").a_RI;
  CHECK(at::equal(a, at_path(again, "up").a_RI));
  CHECK_FALSE(at::equal(a, at_path(other, "up").a_RI));
  const at::Tensor kept = a != 0;
  CHECK(difference(a, plain / 0.3 * kept) < 1e-5);
  const double share = kept.to(at::kDouble).mean().item<double>();
  CHECK(share > 0.24);  // of 640: three deviations
  CHECK(share < 0.36);
}

TEST_CASE("the new adapter reaches the modules that the old ones do", "[adapters]") {
  FakeLlama model;
  const auto add = [&](const std::string& name, const LoraOptions& options) {
    auto set = inject(model, options, name);
    testing::randomize(set.parameters());
    return updates_of(adapter_to_files(set));
  };
  const auto sum_at = [](const auto& updates, const std::string& path) -> at::Tensor {
    const auto found = updates.find(path);
    return found == updates.end() ? at::zeros({1}) : found->second;
  };
  const auto check = [&](const LoraOptions& left, const LoraOptions& right) {
    const auto a = add("a", left), b = add("b", right);
    set_active_adapters(model, {"b"});
    const auto sum = updates_of(adapter_to_files(add_weighted_adapter(model, {"a", "b"}, {2, 3}, "sum", {.type = "cat"})));
    CHECK(active_adapters(model) == Names{"b"});
    std::set<std::string> paths;
    for (const auto& entry : a) paths.insert(entry.first);
    for (const auto& entry : b) paths.insert(entry.first);
    CHECK(sum.size() == paths.size());
    for (const auto& path : paths) CHECK(difference(sum.at(path), sum_at(a, path) * 2 + sum_at(b, path) * 3) < 1e-5);
    for (const std::string name : {"a", "b", "sum"}) remove_adapter(model, name);
  };
  check({.targets = Names{"q_proj"}}, {.targets = Names{"v_proj", "embed_tokens"}});
  check({.targets = R"(.*\.(q|v)_proj)"}, {.targets = R"(.*\.0\.mlp\.up_proj)"});
  check({.targets = Names{"q_proj"}, .layers_to_transform = {{0}}},
        {.targets = Names{"q_proj", "k_proj"}, .layers_to_transform = {{1}}});
  check({.targets = Names{"q_proj", "v_proj"}, .exclude = Names{"layers.0.self_attn.q_proj"}}, {.targets = Names{"v_proj"}});
  check({.targets = "all-linear"}, {.rank = 2, .targets = Names{"lm_head"}});
}

TEST_CASE("a combined adapter computes the sum of the adapters", "[adapters]") {
  const torch::NoGradGuard no_grad;
  FakeLlama model({.hidden = 8, .intermediate = 12, .vocab = 128, .layers = 1});
  const auto ids = testing::some_ids();
  auto a = inject(model, {.targets = Names{"q_proj", "embed_tokens"}}, "a");
  auto b = inject(model, {.rank = 3, .alpha = 1, .targets = Names{"q_proj", "v_proj"}}, "b");
  testing::randomize(a.parameters());
  testing::randomize(b.parameters());
  set_active_adapters(model, {"a", "b"});
  const at::Tensor both = model.forward(ids);
  add_weighted_adapter(model, {"a", "b"}, {1, 1}, "sum", {.type = "cat"});
  CHECK(difference(model.forward(ids), both) == 0);
  set_active_adapters(model, {"sum"});
  CHECK(difference(model.forward(ids), both) < 1e-5);
  set_active_adapters(model, {"a"});
  CHECK(difference(model.forward(ids), both) > 1e-3);
}

TEST_CASE("parameters that one adapter trains whole go into the combination", "[adapters]") {
  FakeLlama model;
  auto a = inject(model, {.targets = Names{"q_proj"}, .modules_to_save = {"lm_head"}}, "a");
  testing::randomize(a.parameters());
  const at::Tensor head = model.lm_head->weight.detach().clone();
  auto b = inject(model, {.targets = Names{"q_proj"}}, "b");
  CHECK(difference(model.lm_head->weight, head) > 1e-3);
  add_weighted_adapter(model, {"b", "a"}, {1, 1}, "sum", {.type = "linear"});
  set_active_adapters(model, {"sum"});
  CHECK(at::equal(model.lm_head->weight, head));
}

TEST_CASE("combinations that cannot be are refused", "[adapters]") {
  at::manual_seed(5);
  const auto up = made_files(4, {"up"}), down = made_files(4, {"down"}), thin = made_files(2, {"up"});
  CHECK(refusal<ConfigError>({}, {}).find("found 0") != std::string::npos);
  refusal<ConfigError>({up, down}, {1});
  refusal<ConfigError>({up, down}, {1, NAN});
  CHECK(refusal<ConfigError>({up, down}, {1, 1}, {.type = "tie"}).find("dare_ties_svd") != std::string::npos);
  for (const std::string type : {"linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"}) {
    CHECK(refusal<ConfigError>({up, thin}, {1, 1}, {.type = type, .density = 0.5}).find("4, 2") != std::string::npos);
  }
  for (const auto& type : combination_types()) {
    if (type == "cat" || type == "linear" || type == "svd") continue;
    CHECK(refusal<ConfigError>({up, down}, {1, 1}, {.type = type}).find("density") != std::string::npos);
  }
  for (const double density : {0.0, -0.5, 1.5}) refusal<ConfigError>({up, down}, {1, 1}, {.type = "ties", .density = density});
  refusal<ConfigError>({up, down}, {1, 1}, {.svd_rank = 0});
  refusal<ConfigError>({up, down}, {1, 1}, {.svd_clamp = 1.5});
  refusal<ConfigError>({up, down}, {1, 1}, {.type = "ties", .density = 0.5, .majority_sign_method = "most"});

  auto expression = down;
  lora_config(expression).target_modules = "down";
  CHECK(refusal<ConfigError>({up, expression}, {1, 1}).find("expression") != std::string::npos);
  auto head = up, same_head = down;
  head.tensors["base_model.model.head.weight"] = same_head.tensors["base_model.model.head.weight"] = at::zeros({3, 3});
  CHECK(refusal<ConfigError>({head, same_head}, {1, 1}).find("head.weight") != std::string::npos);
  auto whole = down;
  whole.tensors["base_model.model.up.weight"] = at::zeros({30, 40});
  CHECK(refusal<ConfigError>({up, whole}, {1, 1}).find("up.weight") != std::string::npos);
  auto dora = down;
  dora.tensors["base_model.model.down.lora_magnitude_vector"] = at::zeros({30});
  CHECK(refusal<ShapeError>({up, dora}, {1, 1}).find("DoRA") != std::string::npos);
  auto wide = made_files(4, {"up"});
  wide.tensors["base_model.model.up.lora_A.weight"] = at::randn({4, 41});
  CHECK(refusal<ShapeError>({up, wide}, {1, 1}).find("up") != std::string::npos);
  auto patterned = made_files(4, {"up"});
  lora_config(patterned).rank_pattern = {{"up", 2}};
  patterned.tensors = thin.tensors;
  CHECK(refusal<ConfigError>({up, patterned}, {1, 1}, {.type = "linear"}).find("4 and 2") != std::string::npos);

  FakeLlama model;
  inject(model, {.targets = Names{"q_proj"}}, "a");
  CHECK_THROWS_AS(add_weighted_adapter(model, {"a", "b"}, {1, 1}, "sum"), ConfigError);
  CHECK_THROWS_AS(add_weighted_adapter(model, {"a"}, {1}, "a"), ConfigError);
  CHECK(active_adapters(model) == Names{"a"});
}
