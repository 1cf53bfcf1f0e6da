// Models in few bits: bitsandbytes' checkpoints give the logits of exact dequantisation, and adapters train on them to what
// they train to on the plain numbers.
#include <ATen/ATen.h>
#include <torch/utils.h>

#include <fstream>

#include "formats/json.h"
#include "lora/adapters/adapter_io.h"
#include "lora/adapters/freeze.h"
#include "lora/adapters/inject.h"
#include "lora/core/error.h"
#include "lora/core/file.h"
#include "lora/io/quantized.h"
#include "lora/io/safetensors.h"
#include "lora/models/llama.h"
#include "lora/ops/device.h"
#include "lora/train/trainer.h"
#include "support.h"

using namespace lora;
using lora::testing::message_of;
using lora::testing::ScratchFolder;

namespace {

constexpr QuantizationScheme kNf4{QuantizedType::kNf4, 64, false}, kDouble{QuantizedType::kNf4, 64, true};

/// Weights in few bits are saved so.
const llama::SaveOptions kQuantized = [] {
  llama::SaveOptions options;
  options.quantized = true;
  return options;
}();

Path reference(const std::string& name) { return testing::reference_folder() / "peft" / name; }

double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  REQUIRE(a.sizes() == b.sizes());
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

Batch fixture_batch(bool masked) {
  const auto tensors = io::load_safetensors(reference("base/batch.safetensors"));
  Batch batch;
  batch.input_ids_BS = tensors.at("input_ids");
  batch.labels_BS = tensors.at("labels");
  if (masked) batch.attention_mask_BS = tensors.at("attention_mask");
  batch.num_tokens = tensors.at("attention_mask").sum().item<int64_t>();
  batch.num_targets = (batch.labels_BS.slice(1, 1) != kIgnoreLabel).sum().item<int64_t>();
  return batch;
}

std::vector<nn::LinearImpl*> products(llama::LlamaForCausalLMImpl& model) {
  std::vector<nn::LinearImpl*> found;
  for (const auto& module : model.model->layers->modules(false)) {
    if (auto* linear = module->as<nn::LinearImpl>()) found.push_back(linear);
  }
  return found;
}

int64_t in_few_bits(llama::LlamaForCausalLMImpl& model) {
  const auto all = products(model);
  return std::count_if(all.begin(), all.end(), [](const auto* linear) { return linear->weight_is_quantized(); });
}

/// The same model with plain numbers.
std::shared_ptr<llama::LlamaForCausalLMImpl> plain_twin(llama::LlamaForCausalLMImpl& model) {
  auto twin = std::make_shared<llama::LlamaForCausalLMImpl>(
      model.config, nn::ParameterOptions{.dtype = model.model->norm->weight.scalar_type(), .initialize = false});
  const torch::NoGradGuard no_grad;
  auto parameters = twin->named_parameters();
  for (const auto& entry : nn::readable_parameters(model)) parameters[entry.name].copy_(entry.read());
  return twin;
}

void edit_config(const Path& directory, const std::function<void(formats::Json&)>& change) {
  auto json = formats::parse_json(read_file(directory / "config.json"), "config.json");
  change(json);
  std::ofstream(directory / "config.json") << json.dump();
}

void copy_model(const Path& from, const ScratchFolder& to) {
  for (const char* file : {"config.json", "model.safetensors"}) std::filesystem::copy_file(from / file, to / file);
}

/// Losses of a few steps, and what was trained.
struct Outcome {
  std::vector<double> losses;
  std::vector<std::pair<std::string, at::Tensor>> trained;
};

struct Case {
  at::ScalarType amp = at::kFloat;
  nn::Recompute recompute = nn::Recompute::kNone;
  nn::FastPaths fast = {};
  double dropout = 0;
};

Outcome trained_on(const std::shared_ptr<llama::LlamaForCausalLMImpl>& model, const Case& one) {
  model->fast_paths = one.fast;
  model->recompute = one.recompute;
  seed_generators(3);
  LoraOptions options{.rank = 4, .alpha = 8, .dropout = one.dropout, .init = "false"};
  options.targets = "all-linear";
  const auto adapters = inject(*model, options);
  freeze_base(*model, adapters);
  train::Trainer trainer(model, adapters, {.steps = 5, .learning_rate = 5e-3, .amp_dtype = one.amp});
  const std::vector<Batch> batches = {fixture_batch(false)};
  Outcome outcome;
  for (int step = 0; step < 5; ++step) outcome.losses.push_back(trainer.step(batches).loss);
  outcome.trained = adapters.named_parameters();
  return outcome;
}

}  // namespace

TEST_CASE("bitsandbytes' 4-bit checkpoints give the logits of exact dequantisation", "[parity]") {
  const std::string name = GENERATE("bnb4", "bnb4_dq");
  INFO(name);
  const torch::NoGradGuard no_grad;
  const auto expected = io::load_safetensors(reference(name) / "expected.safetensors");
  auto model = llama::load(reference(name));
  CHECK(in_few_bits(*model) == 14);
  CHECK_FALSE(model->lm_head->weight_is_quantized());
  for (const nn::FastPaths& fast : {nn::FastPaths{}, nn::FastPaths::none()}) {
    model->fast_paths = fast;
    CHECK(largest_difference(model->forward(fixture_batch(true)), expected.at("logits")) < 2e-5);
  }
  const auto readable = nn::readable_parameters(*model);
  int64_t compared = 0;
  for (const auto& entry : readable) {
    if (!expected.contains(entry.name)) continue;
    CHECK(at::equal(entry.read(), expected.at(entry.name)));
    ++compared;
  }
  CHECK(compared == 7);
  CHECK(in_few_bits(*model) == 14);
}

TEST_CASE("a base in few bits: adapters train to what they train to on its plain numbers", "[parity]") {
  const Case one =
      GENERATE(Case{}, Case{.amp = at::kBFloat16}, Case{.recompute = nn::Recompute::kFull},
               Case{.recompute = nn::Recompute::kSelective}, Case{.fast = nn::FastPaths::none()}, Case{.dropout = 0.3});
  const std::string name = GENERATE("bnb4", "bnb4_dq");
  auto bits = llama::load(reference(name));
  auto plain = plain_twin(*bits);
  const Outcome found = trained_on(bits, one), expected = trained_on(plain, one);
  CHECK(in_few_bits(*bits) == 14);
  for (size_t i = 0; i < 5; ++i) CHECK(std::abs(found.losses[i] - expected.losses[i]) < 1e-5);
  CHECK(found.losses[4] < found.losses[0] - 0.05);
  REQUIRE(found.trained.size() == 28);
  for (size_t i = 0; i < found.trained.size(); ++i) {
    INFO(found.trained[i].first);
    CHECK(largest_difference(found.trained[i].second, expected.trained[i].second) < 1e-5);
  }
}

TEST_CASE("a base is quantised as it is loaded, weight by weight", "[parity]") {
  const QuantizationScheme scheme =
      GENERATE(values<QuantizationScheme>({kNf4, kDouble, {QuantizedType::kFp4, 128, false}, {.type = QuantizedType::kInt8}}));
  const at::ScalarType dtype = GENERATE(at::kFloat, at::kBFloat16);
  auto model = llama::load(reference("base"), {.dtype = dtype, .quantization = scheme});
  CHECK(in_few_bits(*model) == 14);
  CHECK_FALSE(model->config.quantization);
  const auto base = llama::load(reference("base"), {.dtype = dtype});
  const auto plain = base->named_parameters();
  for (const auto& entry : nn::readable_parameters(*model)) {
    INFO(entry.name);
    const bool is_product = entry.name.find("_proj.") != std::string::npos;
    const at::Tensor weight = plain[entry.name];
    CHECK(at::equal(entry.read(), is_product ? ops::QuantizedTensor::quantize(weight, scheme).dequantize(dtype) : weight));
  }
  // What bitsandbytes made of the same base.
  if (dtype == at::kFloat && (scheme == kNf4 || scheme == kDouble)) {
    const auto theirs = llama::load(reference(scheme == kNf4 ? "bnb4" : "bnb4_dq"));
    const auto ours = products(*model), stored = products(*theirs);
    for (size_t i = 0; i < ours.size(); ++i) {
      const auto &a = *ours[i]->quantized_weight()->parts(), &b = *stored[i]->quantized_weight()->parts();
      CHECK(at::equal(a.codes, b.codes));
      CHECK(a.nested_offset == b.nested_offset);
      if (scheme == kNf4) {
        CHECK(at::equal(a.absmax, b.absmax));
        continue;
      }
      // bitsandbytes' CPU kernel finds the nearest of 256 numbers by a table, and misses it where two are almost as near.
      const auto scales = ops::QuantizedTensor::quantize(products(*base)[i]->weight, kNf4).parts()->absmax;
      const auto distance = [&](const io::QuantizedParts& parts) {
        const at::Tensor number = parts.nested_map.index({parts.absmax.to(at::kLong)});
        return (number * parts.nested_absmax + parts.nested_offset - scales).abs();
      };
      CHECK((a.absmax != b.absmax).sum().item<int64_t>() <= 2);
      CHECK((distance(a) <= distance(b) + 1e-7).all().item<bool>());
    }
  }
}

TEST_CASE("fresh weights are quantised as they are drawn", "[parity]") {
  const auto config = llama::fresh_llama_config("tiny", {});
  at::manual_seed(9);
  llama::LlamaForCausalLMImpl plain(config);
  at::manual_seed(9);
  llama::LlamaForCausalLMImpl bits(config, {.quantization = kDouble});
  const auto all = products(bits);
  CHECK(in_few_bits(bits) == static_cast<int64_t>(all.size()));
  const auto parameters = plain.named_parameters();
  for (const auto& entry : nn::readable_parameters(bits)) {
    INFO(entry.name);
    const bool is_product = entry.name.find("_proj.") != std::string::npos;
    const at::Tensor weight = parameters[entry.name];
    CHECK(at::equal(entry.read(), is_product ? ops::QuantizedTensor::quantize(weight, kDouble).dequantize(at::kFloat) : weight));
  }
}

TEST_CASE("a model in few bits is saved plain, or as bitsandbytes stores it, and read again the same", "[parity]") {
  const torch::NoGradGuard no_grad;
  const std::string name = GENERATE("bnb4", "bnb4_dq");
  auto model = llama::load(reference(name));
  const at::Tensor logits = model->forward(fixture_batch(false));
  const ScratchFolder plain, bits;
  llama::save(*model, plain.path());
  llama::save(*model, bits.path(), kQuantized);
  CHECK(in_few_bits(*model) == 14);

  const auto plain_config = formats::parse_json(read_file(plain / "config.json"), "c");
  CHECK_FALSE(plain_config.contains("quantization_config"));
  const auto from_plain = llama::load(plain.path());
  CHECK(in_few_bits(*from_plain) == 0);
  CHECK(at::equal(from_plain->forward(fixture_batch(false)), logits));

  const auto theirs = formats::parse_json(read_file(reference(name) / "config.json"), "c");
  CHECK(formats::parse_json(read_file(bits / "config.json"), "c").at("quantization_config") == theirs.at("quantization_config"));
  const auto written = io::load_safetensors(bits / "model.safetensors"),
             read = io::load_safetensors(reference(name) / "model.safetensors");
  REQUIRE(written.size() == read.size());
  for (const auto& [key, tensor] : read) {
    INFO(key);
    REQUIRE(written.contains(key));
    CHECK(written.at(key).sizes() == tensor.sizes());
    CHECK(at::equal(written.at(key), tensor));
  }
  const ScratchFolder again;
  llama::save(*llama::load(bits.path()), again.path(), kQuantized);
  CHECK(read_file(again / "model.safetensors") == read_file(bits / "model.safetensors"));
  CHECK(read_file(again / "config.json") == read_file(bits / "config.json"));
}

TEST_CASE("8 bits are saved and read again the same", "[parity]") {
  const torch::NoGradGuard no_grad;
  auto model = llama::load(reference("base"), {.quantization = QuantizationScheme{.type = QuantizedType::kInt8}});
  const ScratchFolder folder, again;
  llama::save(*model, folder.path(), kQuantized);
  auto read = llama::load(folder.path());
  CHECK(in_few_bits(*read) == 14);
  CHECK(at::equal(read->forward(fixture_batch(false)), model->forward(fixture_batch(false))));
  llama::save(*read, again.path(), kQuantized);
  CHECK(read_file(again / "model.safetensors") == read_file(folder / "model.safetensors"));
}

TEST_CASE("plain weights in a checkpoint of few bits: skipped ones stay, others are quantised as its config says", "[parity]") {
  const ScratchFolder folder;
  auto model = llama::load(reference("bnb4"));
  products(*model)[3]->restore_weight();
  llama::save(*model, folder.path(), kQuantized);
  const auto config = formats::parse_json(read_file(folder / "config.json"), "c");
  const std::string name = "model.layers.0.self_attn.o_proj";
  CHECK(config.at("quantization_config").at("llm_int8_skip_modules") == formats::Json({"lm_head", name}));
  auto read = llama::load(folder.path());
  CHECK(in_few_bits(*read) == 13);
  CHECK_FALSE(products(*read)[3]->weight_is_quantized());
  edit_config(folder.path(), [](auto& json) { json["quantization_config"]["llm_int8_skip_modules"] = nullptr; });
  read = llama::load(folder.path());
  CHECK(in_few_bits(*read) == 14);
  CHECK(at::equal(products(*read)[3]->weight_value(), products(*model)[3]->weight));
}

TEST_CASE("a stored head in few bits becomes plain", "[parity]") {
  const ScratchFolder folder;
  copy_model(reference("bnb4"), folder);
  auto tensors = io::load_safetensors(folder / "model.safetensors");
  const auto quantized = ops::QuantizedTensor::quantize(tensors.at("lm_head.weight"), kDouble);
  for (const auto& source : io::quantized_sources("lm_head.weight", quantized.parts())) tensors[source.name] = source.read();
  io::save_safetensors(folder / "model.safetensors", io::NamedTensors(tensors.begin(), tensors.end()));
  const auto model = llama::load(folder.path());
  CHECK(at::equal(model->lm_head->weight, quantized.dequantize(at::kFloat)));
}

TEST_CASE("wishes against what a checkpoint is are refused", "[parity]") {
  for (const QuantizationScheme& wish :
       {kDouble, QuantizationScheme{QuantizedType::kFp4, 64, false}, QuantizationScheme{QuantizedType::kNf4, 128, false},
        QuantizationScheme{.type = QuantizedType::kInt8}}) {
    const auto text = message_of<ConfigError>([&] { llama::load(reference("bnb4"), {.quantization = wish}); });
    CHECK(text.find("nf4 in blocks of 64") != std::string::npos);
  }
  CHECK(in_few_bits(*llama::load(reference("bnb4"), {.quantization = kNf4})) == 14);
  CHECK_THROWS_AS(llama::load(reference("bnb4"), {.offload = nn::Offload::kDisk}), ConfigError);
  CHECK_THROWS_AS(llama::load(reference("base"), {.offload = nn::Offload::kDisk, .quantization = kNf4}), ConfigError);
  auto plain = llama::load(reference("base"));
  const ScratchFolder folder;
  CHECK_THROWS_AS(llama::save(*plain, folder.path(), kQuantized), ConfigError);
  auto mixed = llama::load(reference("bnb4"));
  products(*mixed)[0]->quantize_weight(ops::QuantizedTensor::quantize(at::zeros({64, 64}), kDouble));
  CHECK_THROWS_AS(llama::save(*mixed, folder.path(), kQuantized), ConfigError);

  copy_model(reference("bnb4"), folder);
  edit_config(folder.path(), [](auto& json) { json["quantization_config"] = {{"quant_method", "gptq"}, {"bits", 4}}; });
  CHECK(message_of<FormatError>([&] { llama::load(folder.path()); }).find("gptq") != std::string::npos);
  edit_config(folder.path(), [](auto& json) { json.erase("quantization_config"); });
  CHECK(in_few_bits(*llama::load(folder.path())) == 14);  // the tensors say it, too
  edit_config(folder.path(), [](auto& json) { json["hidden_size"] = 128; });
  CHECK_THROWS_AS(llama::load(folder.path()), ShapeError);
}

TEST_CASE("a base in few bits: the meta device has its form", "[parity]") {
  for (const auto& [name, wish] :
       std::vector<std::pair<std::string, std::optional<QuantizationScheme>>>{{"bnb4_dq", {}}, {"base", kDouble}}) {
    auto real = llama::load(reference(name), {.quantization = wish}),
         form = llama::load(reference(name), {.device = at::kMeta, .quantization = wish});
    const auto a = products(*real), b = products(*form);
    for (size_t i = 0; i < a.size(); ++i) {
      REQUIRE(b[i]->weight_is_quantized());
      CHECK(a[i]->quantized_weight()->bytes() == b[i]->quantized_weight()->bytes());
    }
  }
}

TEST_CASE("a base in few bits: merged adapters and freezing rules", "[parity]") {
  const torch::NoGradGuard no_grad;
  auto model = llama::load(reference("bnb4_dq"));
  AdapterSet adapters = load_adapter(*model, reference("lora/final"));
  const at::Tensor logits = model->forward(fixture_batch(false));
  adapters.merge();
  CHECK(in_few_bits(*model) == 10);  // q and v of two layers hold plain numbers now
  CHECK(largest_difference(model->forward(fixture_batch(false)), logits) < 1e-5);
  adapters.unmerge();
  freeze_base(*model, adapters, {.train = {"layers.1.mlp.up_proj.weight"}, .freeze = {}});
  CHECK(in_few_bits(*model) == 9);
}
