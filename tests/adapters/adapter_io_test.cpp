#include "lora/adapters/adapter_io.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <limits>

#include "adapters/fake_llama.h"
#include "captured_log.h"
#include "lora/adapters/inject.h"
#include "lora/core/error.h"
#include "lora/io/safetensors.h"
#include "lora_config.h"
#include "support.h"

using namespace lora;
using testing::captured_log;
using testing::difference;
using testing::FakeLlama;
using testing::lora_config;
using testing::message_of;
using Names = std::vector<std::string>;
using Tensors = std::map<std::string, at::Tensor>;

namespace {

const testing::FakeSizes kSmall{.hidden = 8, .intermediate = 12, .vocab = 128, .layers = 2};
const std::string kQ0 = "base_model.model.model.layers.0.self_attn.q_proj.";

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

LoraOptions lora_options(const formats::PeftLoraConfig& config) { return std::get<LoraOptions>(options_from(config)); }

Names names_in(const io::AdapterFiles& files) {
  Names names;
  for (const auto& entry : files.tensors) names.push_back(entry.first);
  return names;
}

/// The same tensors under names that `change` makes.
template <class Change>
io::AdapterFiles renamed(const io::AdapterFiles& files, const Change& change) {
  io::AdapterFiles result{.config = files.config, .tensors = {}};
  for (const auto& [name, tensor] : files.tensors) result.tensors[change(name)] = tensor;
  return result;
}

std::string replaced(std::string text, const std::string& part, const std::string& by) {
  const size_t at = text.find(part);
  return at == std::string::npos ? text : text.replace(at, part.size(), by);
}

bool same_tensors(const Tensors& a, const Tensors& b) {
  return std::ranges::equal(a, b, [](const auto& left, const auto& right) {
    return left.first == right.first && at::equal(left.second, right.second);
  });
}

std::string bytes_of(const Path& file) {
  std::ifstream stream(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

/// What a small model with every kind of trained tensor saves.
io::AdapterFiles every_kind() {
  FakeLlama model(kSmall);
  const auto set = inject(model, {.rank = 2, .targets = Names{"q_proj", "embed_tokens"}, .modules_to_save = {"lm_head"}});
  testing::randomize(set.parameters());
  return adapter_to_files(set);
}

std::string load_error(const io::AdapterFiles& files) {
  FakeLlama model(kSmall);
  return message_of<ShapeError>([&] { adapter_from_files(model, files, "default"); });
}

}  // namespace

TEST_CASE("files hold PEFT's names, in fp32 on the CPU", "[adapters]") {
  const auto files = every_kind();
  CHECK(names_in(files) == Names{"base_model.model.lm_head.weight", "base_model.model.model.embed_tokens.lora_embedding_A",
                                 "base_model.model.model.embed_tokens.lora_embedding_B", kQ0 + "lora_A.weight",
                                 kQ0 + "lora_B.weight", "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight",
                                 "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"});
  for (const auto& entry : files.tensors) {
    CHECK(entry.second.scalar_type() == at::kFloat);
    CHECK_FALSE(entry.second.requires_grad());
  }
  CHECK(lora_config(files).task_type == "CAUSAL_LM");
  CHECK(lora_config(files).inference_mode);
  CHECK_FALSE(lora_config(files).base_model_name_or_path);
}

TEST_CASE("an adapter survives the way to a directory and back", "[adapters]") {
  FakeLlama model(kSmall);
  const auto ids = testing::some_ids();
  const auto base = model.forward(ids);
  const LoraOptions options{.rank = 2,
                            .alpha = 6,
                            .dropout = 0.125,
                            .rank_stabilized = true,
                            .init = "gaussian",
                            .targets = "all-linear",
                            .exclude = Names{"k_proj"},
                            .rank_pattern = {{"q_proj", 3}},
                            .alpha_pattern = {{"up_proj", 5}},
                            .modules_to_save = {"lm_head", "model.norm"},
                            .base_model_name = "some/base"};
  const auto set = inject(model, options);
  testing::randomize(set.parameters());
  model.eval();
  const auto adapted = model.forward(ids);
  const testing::ScratchFolder folder;
  save_adapter(set, folder / "adapter");

  remove_adapter(model, "default");
  CHECK(at::equal(model.forward(ids), base));
  const auto loaded = load_adapter(model, folder / "adapter", "again");
  CHECK(at::equal(model.forward(ids), adapted));
  CHECK(loaded.name() == "again");
  CHECK(active_adapters(model) == Names{"again"});
  for (const auto& parameter : loaded.parameters()) CHECK(parameter.requires_grad());

  const auto& found = std::get<LoraOptions>(loaded.options());
  CHECK(std::get<Names>(found.targets) == Names{"down_proj", "gate_proj", "o_proj", "q_proj", "up_proj", "v_proj"});
  CHECK(std::get<Names>(found.exclude) == Names{"k_proj"});
  CHECK(found.rank == 2);
  CHECK(found.alpha == 6);
  CHECK(found.dropout == 0.125);
  CHECK(found.rank_stabilized);
  CHECK(found.init == "gaussian");
  CHECK(found.rank_pattern == options.rank_pattern);
  CHECK(found.alpha_pattern == options.alpha_pattern);
  CHECK(found.modules_to_save == options.modules_to_save);
  CHECK(found.base_model_name == "some/base");
}

TEST_CASE("an inactive adapter is saved and filled as an active one", "[adapters]") {
  FakeLlama model(kSmall);
  const auto a = inject(model, {.modules_to_save = {"lm_head"}}, "a");
  testing::randomize(a.parameters());
  const auto files = adapter_to_files(a);
  inject(model, {}, "b");
  CHECK(same_tensors(adapter_to_files(a).tensors, files.tensors));
  auto other = files;
  for (auto& entry : other.tensors) entry.second = entry.second + 1;
  load_adapter_tensors(a, other.tensors);
  CHECK(same_tensors(adapter_to_files(a).tensors, other.tensors));
  set_active_adapters(model, {"a"});
  CHECK(at::equal(model.lm_head->weight, other.tensors.at("base_model.model.lm_head.weight")));
}

TEST_CASE("PEFT's adapters load and are written back byte for byte", "[adapters]") {
  const std::string adapter =
      GENERATE("lora/init", "lora/final", "lora_modules_to_save/final", "lora_embedding/final", "lora_all_linear_patterns/final",
               "lora_regex_layers/final", "rslora/final", "multi_adapter/w_cat");
  INFO(adapter);
  const auto directory = testing::outside_data("fixtures/peft/" + adapter);
  if (!directory) return;
  FakeLlama model;
  std::optional<AdapterSet> set;
  const auto log = captured_log([&] { set = load_adapter(model, *directory); });
  CHECK(log.empty());
  const auto theirs = io::load_safetensors(*directory / "adapter_model.safetensors");
  const auto ours = adapter_to_files(*set);
  CHECK(ours.tensors.size() == theirs.size());
  for (const auto& [name, tensor] : theirs) {
    INFO(name);
    REQUIRE(ours.tensors.contains(name));
    CHECK(at::equal(ours.tensors.at(name), tensor));
  }
  const testing::ScratchFolder folder;
  save_adapter(*set, folder / "copy");
  CHECK(bytes_of(folder / "copy/adapter_model.safetensors") == bytes_of(*directory / "adapter_model.safetensors"));
  if (adapter.starts_with("lora/")) {
    // Ours ends its last line, PEFT's does not.
    CHECK(bytes_of(folder / "copy/adapter_config.json") == bytes_of(*directory / "adapter_config.json") + "\n");
  }
}

TEST_CASE("fresh adapters have the names and shapes that PEFT gives them", "[adapters]") {
  const auto directory = testing::outside_data("fixtures/peft/lora_all_linear_patterns/init");
  if (!directory) return;
  FakeLlama model;
  const auto set = inject(
      model,
      {.rank = 2, .alpha = 4, .targets = "all-linear", .rank_pattern = {{R"(layers\.1\.mlp\.up_proj)", 3}, {"q_proj", 5}}});
  const auto theirs = io::load_safetensors(*directory / "adapter_model.safetensors");
  const auto ours = adapter_to_files(set);
  CHECK(ours.tensors.size() == theirs.size());
  for (const auto& [name, tensor] : theirs) {
    INFO(name);
    REQUIRE(ours.tensors.contains(name));
    CHECK(ours.tensors.at(name).sizes() == tensor.sizes());
  }
}

TEST_CASE("trained biases load, compute and are written as by PEFT", "[adapters]") {
  const std::string which = GENERATE("all", "lora_only");
  INFO(which);
  const Path directory = testing::reference_folder() / "bias" / which;
  const auto expected = io::load_safetensors(directory / "expected.safetensors");
  testing::Mlp model;
  {
    const torch::NoGradGuard no_grad;
    for (const auto& parameter : model.named_parameters()) {
      at::Tensor(parameter.value()).copy_(expected.at("base." + parameter.key()));
    }
  }
  const auto& x = expected.at("x");
  CHECK(difference(model.forward(x), expected.at("base")) < 1e-6);
  auto set = load_adapter(model, directory);
  CHECK(difference(model.forward(x), expected.at("trained")) < 1e-6);
  set.merge();
  CHECK(difference(model.forward(x), expected.at("trained")) < 1e-6);
  set.set_enabled(false);
  CHECK(difference(model.forward(x), expected.at("base")) < 1e-6);
  set.set_enabled(true);

  const auto theirs = io::load_safetensors(directory / "adapter_model.safetensors");
  const auto ours = adapter_to_files(set);
  CHECK(same_tensors(ours.tensors, theirs));
  CHECK(lora_config(ours).bias == which);
}

TEST_CASE("names load with and without PEFT's prefix and with the adapter's name left in", "[adapters]") {
  const auto files = every_kind();
  const std::string word = GENERATE("default", "mine");
  const auto in_memory = [&](const std::string& name) {
    auto changed = replaced(name, "lora_A", "lora_A." + word);
    changed = replaced(changed, "lora_B", "lora_B." + word);
    changed = replaced(changed, "lora_embedding_A", "lora_embedding_A." + word);
    changed = replaced(changed, "lora_embedding_B", "lora_embedding_B." + word);
    return replaced(changed, "lm_head.", "lm_head.modules_to_save." + word + ".");
  };
  const auto bare = [](const std::string& name) { return replaced(name, "base_model.model.", ""); };
  for (const auto& variant : {renamed(files, bare), renamed(files, in_memory), renamed(renamed(files, in_memory), bare)}) {
    FakeLlama model(kSmall);
    const auto set = adapter_from_files(model, variant, "mine");
    CHECK(same_tensors(adapter_to_files(set).tensors, files.tensors));
  }
}

TEST_CASE("half-precision files give fp32 parameters", "[adapters]") {
  auto files = every_kind();
  for (auto& entry : files.tensors) entry.second = entry.second.to(at::kHalf);
  FakeLlama model(kSmall);
  const auto set = adapter_from_files(model, files, "default");
  for (const auto& parameter : set.parameters()) CHECK(parameter.scalar_type() == at::kFloat);
  for (const auto& [name, tensor] : adapter_to_files(set).tensors) {
    CHECK(difference(tensor, files.tensors.at(name)) == 0);
  }
}

TEST_CASE("every tensor needs its place and every place its tensor", "[adapters]") {
  auto files = every_kind();
  SECTION("missing") {
    files.tensors.erase(kQ0 + "lora_B.weight");
    CHECK(contains(load_error(files), "1 missing: \"model.layers.0.self_attn.q_proj.lora_B.weight\";"));
  }
  SECTION("extra") {
    files.tensors[kQ0 + "lora_C.weight"] = at::zeros({1});
    CHECK(contains(load_error(files), "1 without a place: \"" + kQ0 + "lora_C.weight\";"));
  }
  SECTION("extra under a second name") {
    files.tensors["model.layers.0.self_attn.q_proj.lora_A.weight"] = files.tensors.at(kQ0 + "lora_A.weight");
    CHECK(contains(load_error(files), "1 without a place"));
  }
  SECTION("misshapen") {
    files.tensors[kQ0 + "lora_A.weight"] = at::zeros({3, 8});
    const auto text = load_error(files);
    CHECK(contains(text, "1 of another shape: \"" + kQ0 + "lora_A.weight\""));
    CHECK(contains(text, "[3, 8]"));
    CHECK(contains(text, "[2, 8]"));
  }
  SECTION("whole numbers") {
    files.tensors[kQ0 + "lora_A.weight"] = at::zeros({2, 8}, at::kLong);
    CHECK(contains(load_error(files), "Long"));
  }
  SECTION("another rank") {
    lora_config(files).r = 4;
    CHECK(contains(load_error(files), "6 of another shape"));
  }
  SECTION("an absurd rank") {
    // Two modules of this rank would take 500 GB.
    lora_config(files).r = 1'000'000'000;
    CHECK(contains(load_error(files), "far more than the file has"));
  }
  SECTION("a name that would break the message") {
    std::string name = "a\nb\x1bx";
    for (int i = 0; i < 500; ++i) name += "é";  // cut in the middle of one
    files.tensors[name] = at::zeros({1});
    const auto text = load_error(files);
    CHECK(contains(text, R"("a\nb\x1bxéé)"));
    CHECK(text.size() < 1000);
  }
  SECTION("many names are cut short") {
    files.tensors.clear();
    CHECK(contains(load_error(files), "7 missing: "));
    CHECK(contains(load_error(files), ", ...;"));
  }
}

TEST_CASE("a failed load leaves the model as it was", "[adapters]") {
  FakeLlama model(kSmall);
  inject(model, {}, "a");
  inject(model, {}, "b");
  set_active_adapters(model, {"b", "a"});
  const auto num_modules = model.modules(false).size();
  auto files = every_kind();
  files.tensors.erase(kQ0 + "lora_B.weight");
  const auto head = model.lm_head->weight.detach().clone();
  message_of<ShapeError>([&] { adapter_from_files(model, files, "c"); });
  CHECK(model.modules(false).size() == num_modules);
  CHECK(active_adapters(model) == Names{"b", "a"});
  CHECK(at::equal(model.lm_head->weight, head));
}

TEST_CASE("a copy of the frozen embedding is checked, not loaded", "[adapters]") {
  auto files = every_kind();
  FakeLlama model(kSmall);
  const std::string name = "base_model.model.model.embed_tokens.base_layer.weight";
  files.tensors[name] = model.model->embed_tokens->weight.detach().clone();
  SECTION("the same values") {
    CHECK(captured_log([&] { adapter_from_files(model, files, "default"); }).empty());
  }
  SECTION("other values") {
    files.tensors[name] += 1;
    const auto before = model.model->embed_tokens->weight.detach().clone();
    CHECK(contains(captured_log([&] { adapter_from_files(model, files, "default"); }), "another base"));
    CHECK(at::equal(model.model->embed_tokens->weight, before));
  }
  SECTION("another shape") {
    files.tensors[name] = at::zeros({5, 8});
    CHECK(contains(message_of<ShapeError>([&] { adapter_from_files(model, files, "default"); }), "[128, 8]"));
  }
  SECTION("of a module that is not adapted") {
    files.tensors["base_model.model.model.norm.base_layer.weight"] = at::ones({8});
    message_of<ShapeError>([&] { adapter_from_files(model, files, "default"); });
  }
}

TEST_CASE("config keys that change the maths are refused, absent targets are the default", "[adapters]") {
  formats::PeftLoraConfig config;
  CHECK(std::get<Names>(lora_options(config).targets) == Names{"q_proj", "v_proj"});
  config.init_lora_weights = "pissa";
  CHECK(lora_options(config).init == "pissa");
  config.init_lora_weights = "pissa_niter_16";
  CHECK(lora_options(config).init == "pissa");
  config.init_lora_weights = "eva";
  CHECK(lora_options(config).init == "true");
  for (const char* other : {"corda", "lora_ga"}) {
    config.init_lora_weights = other;
    CHECK(contains(message_of<FormatError>([&] { lora_options(config); }), other));
  }
  config.init_lora_weights = "true";
  config.lora_bias = true;
  CHECK(contains(message_of<FormatError>([&] { lora_options(config); }), "lora_bias"));
  config.lora_bias = false;
  config.fan_in_fan_out = true;
  CHECK(contains(message_of<FormatError>([&] { lora_options(config); }), "fan_in_fan_out"));
}

TEST_CASE("a whole adapter may rest on a regular expression", "[adapters]") {
  FakeLlama model(kSmall);
  const auto set = inject(model, {.targets = R"(.*\.(q|v)_proj)"});
  const auto files = adapter_to_files(set);
  CHECK(std::get<std::string>(*lora_config(files).target_modules) == R"(.*\.(q|v)_proj)");
  FakeLlama other(kSmall);
  CHECK(adapter_from_files(other, files, "default").slots().size() == 4);
}

TEST_CASE("numbers that are not finite are refused by their tensor's name", "[adapters]") {
  for (const double value : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(), 1e300}) {
    auto files = every_kind();
    at::Tensor& tensor = files.tensors.at(kQ0 + "lora_B.weight");
    tensor = tensor.to(at::kDouble);
    tensor.view(-1)[3] = value;
    FakeLlama model(kSmall);
    const auto text = message_of<NonFiniteError>([&] { adapter_from_files(model, files, "default"); });
    CHECK(contains(text, "layers.0.self_attn.q_proj.lora_B"));
    CHECK(active_adapters(model).empty());
  }
}

TEST_CASE("what a file's config asks for in vain is the file's fault", "[adapters]") {
  FakeLlama model(kSmall);
  auto files = every_kind();
  lora_config(files).target_modules = Names{"query_key_value"};
  CHECK(contains(message_of<FormatError>([&] { adapter_from_files(model, files, "default"); }), "query_key_value"));
  inject(model, {}, "taken");
  message_of<ConfigError>([&] { adapter_from_files(model, every_kind(), "taken"); });
}

TEST_CASE("modules to save are those whose paths end as PEFT's rule has it", "[adapters]") {
  FakeLlama model(kSmall);
  const auto set = inject(model, {.targets = Names{"q_proj"}, .modules_to_save = {"norm"}});
  CHECK(set.saved_parameters().size() == 5);  // two of each layer and the last
  auto files = adapter_to_files(set);
  FakeLlama other(kSmall);
  CHECK(adapter_from_files(other, files, "default").saved_parameters().size() == 5);

  // A file may name heads of other kinds of models; what it holds must still have its place.
  auto short_name = every_kind();
  lora_config(short_name).modules_to_save = {"head", "score"};
  FakeLlama third(kSmall);
  CHECK(contains(captured_log([&] { adapter_from_files(third, short_name, "default"); }), "score"));
  lora_config(short_name).modules_to_save = {"score"};
  FakeLlama fourth(kSmall);
  captured_log([&] { message_of<ShapeError>([&] { adapter_from_files(fourth, short_name, "default"); }); });
}

TEST_CASE("copies of base weights that PEFT writes besides are passed over", "[adapters]") {
  FakeLlama model(kSmall);
  auto files = every_kind();
  const auto expected = files.tensors;
  files.tensors["base_model.model.lm_head.original_module.weight"] =
      at::zeros_like(files.tensors.at("base_model.model.lm_head.weight"));
  files.tensors["base_model.model.lm_head.modules_to_save.default.weight"] =
      files.tensors.at("base_model.model.lm_head.weight").clone();
  const auto set = adapter_from_files(model, files, "default");
  CHECK(same_tensors(adapter_to_files(set).tensors, expected));
}

TEST_CASE("where some slots have no start, PiSSA's plain form keeps their own rank and scale", "[adapters]") {
  FakeLlama model(kSmall);
  const auto set = inject(model, {.rank = 3, .alpha = 6, .init = "pissa", .targets = Names{"q_proj", "embed_tokens"}});
  testing::randomize(set.parameters());
  const auto ids = testing::some_ids();
  const auto expected = model.forward(ids);
  const auto files = adapter_to_files(set);
  remove_adapter(model, "default");
  const auto again = adapter_from_files(model, files, "default");
  CHECK(difference(model.forward(ids), expected) < 1e-5);
}
