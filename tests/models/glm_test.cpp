#include "lora/models/glm.h"

#include <ATen/ATen.h>
#include <torch/utils.h>

#include <cstring>

#include "catch.h"
#include "formats/json.h"
#include "glm_model.h"
#include "gradcheck.h"
#include "lora/adapters/adapter_io.h"
#include "lora/adapters/freeze.h"
#include "lora/adapters/inject.h"
#include "lora/core/error.h"
#include "lora/core/file.h"
#include "lora/io/safetensors.h"
#include "lora/nn/few_bits.h"
#include "lora/nn/loss.h"
#include "lora/ops/autocast.h"
#include "models/glm/positions.h"
#include "support.h"

using namespace lora;
using lora::testing::glm_batch;
using lora::testing::glm_example;
using lora::testing::glm_ids;
using lora::testing::GlmImpl;
using lora::testing::kEop;
using lora::testing::kGmask;
using lora::testing::kMask;
using lora::testing::kPad;
using lora::testing::kSop;
using lora::testing::message_of;
using lora::testing::outside_data;
using lora::testing::pointers_to;
using lora::testing::reference_folder;
using lora::testing::ScratchFolder;
using lora::testing::tiny_glm;
using lora::testing::tiny_glm_config;

namespace {

double difference(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

AdapterSet attach_prefix(GlmImpl& model, int64_t count, bool projection = false, double dropout = 0) {
  PrefixOptions options;
  options.num_virtual_tokens = count;
  options.projection = projection;
  options.dropout = dropout;
  return inject(model, options);
}

AdapterSet attach_prompt(GlmImpl& model, int64_t count) {
  PromptOptions options;
  options.num_virtual_tokens = count;
  return inject(model, options);
}

LoraOptions lora_everywhere() {
  LoraOptions options{.rank = 4, .alpha = 8, .init = "false"};
  options.targets = "all-linear";
  return options;
}

/// What virtual tokens a test runs with.
enum class Virtual { kNone, kPrefix, kPrompt };

std::shared_ptr<GlmImpl> model_with(Virtual kind) {
  auto model = tiny_glm();
  if (kind == Virtual::kPrefix) attach_prefix(*model, 3);
  if (kind == Virtual::kPrompt) attach_prompt(*model, 3);
  model->eval();
  return model;
}

// ---- The golden files of chatglm.cpp ----

/// Numbers out of a file, one after the other.
class Golden {
 public:
  explicit Golden(const Path& file) : bytes_(read_file(file)) {}

  at::Tensor next(const std::vector<int64_t>& shape, at::ScalarType type = at::kFloat) {
    at::Tensor values = at::empty(shape, type);
    const size_t size = static_cast<size_t>(values.nbytes());
    REQUIRE(used_ + size <= bytes_.size());
    std::memcpy(values.mutable_data_ptr(), bytes_.data() + used_, size);
    used_ += size;
    return values;
  }

 private:
  std::string bytes_;
  size_t used_ = 0;
};

/// One layer, 8 heads of 4 numbers, with the residual of 28 layers and exact frequencies; [gMASK] and <sop> are what the
/// positions of the file mean.
glm::GlmConfig golden_config() {
  glm::GlmConfig config;
  config.vocab_size = 5;
  config.hidden_size = 32;
  config.num_layers = 1;
  config.num_attention_heads = 8;
  config.inner_hidden_size = 128;
  config.max_sequence_length = 16;
  config.residual_alpha_layers = 28;
  config.mask_token_id = 0;
  config.gmask_token_id = 1;
  config.bos_token_id = 2;
  config.eos_token_id = 3;
  config.rope_inv_freq_dtype = DType::kF32;
  return config;
}

std::shared_ptr<GlmImpl> golden_model(Golden& golden) {
  auto model = std::make_shared<GlmImpl>(golden_config());
  const torch::NoGradGuard no_grad;
  auto parameters = model->named_parameters();
  for (const auto& [name, shape, wide] : glm::glm_weight_shapes(golden_config())) {
    if (name != "lm_head.weight") parameters[name].copy_(golden.next(shape));
  }
  return model;
}

void check_three_steps(GlmImpl& model, Golden& golden, double tolerance) {
  const torch::NoGradGuard no_grad;
  model.eval();
  nn::KvCache cache(1);
  for (const int64_t count : {3, 1, 1}) {
    const at::Tensor ids = golden.next({count}, at::kInt).to(at::kLong), expected = golden.next({count, 32});
    Batch batch;
    batch.input_ids_BS = ids.unsqueeze(0);
    CHECK(difference(model.hidden(batch, &cache).squeeze(0), expected) < tolerance);
  }
}

std::string published_config(const std::string& vocabulary, const std::string& tokens, const std::string& more = "") {
  return R"({"_name_or_path": "THUDM/chatglm-6b", "architectures": ["ChatGLMModel"], "auto_map": {"AutoConfig": "x"},
             "hidden_size": 4096, "inner_hidden_size": 16384, "layernorm_epsilon": 1e-05, "max_sequence_length": 2048,
             "model_type": "chatglm", "num_attention_heads": 32, "num_layers": 28, "position_encoding_2d": true,
             "torch_dtype": "float16", "transformers_version": "4.23.1", "use_cache": true, "pre_seq_len": null,
             "prefix_projection": false, "quantization_bit": 0, "vocab_size": )" +
         vocabulary + ", " + tokens + more + "}";
}
const std::string kTokens =
    R"("bos_token_id": 130004, "eos_token_id": 130005, "mask_token_id": 130000, "gmask_token_id": 130001, "pad_token_id": 3)";

}  // namespace

TEST_CASE("glm config: the published files, and what they leave out", "[glm]") {
  glm::GlmConfig expected = glm::glm_preset("chatglm-6b");
  expected.dtype = DType::kF16;
  const auto current = glm::parse_glm_config(published_config("130528", kTokens), "c");
  CHECK(current == expected);
  CHECK(current.rope_inv_freq_dtype == DType::kF16);
  CHECK(current.residual_alpha_layers == 28);
  CHECK_FALSE(current.tie_word_embeddings);
  const auto first = glm::parse_glm_config(published_config("150528", R"("bos_token_id": 150004, "eos_token_id": 150005)"), "c");
  CHECK(first.mask_token_id == 150000);
  CHECK(first.gmask_token_id == 150001);
  CHECK_FALSE(first.pad_token_id.has_value());
  const auto own = glm::parse_glm_config(
      published_config("130528", kTokens,
                       R"(, "rope_inv_freq_dtype": "float32", "residual_alpha_layers": 3, "tie_word_embeddings": true)"),
      "c");
  CHECK(own.rope_inv_freq_dtype == DType::kF32);
  CHECK(own.residual_alpha_layers == 3);
  CHECK(own.tie_word_embeddings);
  for (const auto& config : {current, first, own, tiny_glm_config(), glm::glm_preset("tiny")}) {
    CHECK(glm::parse_glm_config(glm::write_glm_config(config), "c") == config);
  }
  const auto written = formats::parse_json(glm::write_glm_config(current), "c");
  CHECK(written.at("rope_inv_freq_dtype") == "float16");
  CHECK(written.at("residual_alpha_layers") == 28);
}

TEST_CASE("glm config: what this model is not is refused", "[glm]") {
  const auto refused = [](const std::string& text) { return message_of<FormatError>([&] { glm::parse_glm_config(text, "c"); }); };
  // The class's own defaults are the other vocabulary's.
  CHECK_THAT(refused(published_config("130528", R"("bos_token_id": 150004, "eos_token_id": 150005)")),
             Catch::Matchers::Contains("bos_token_id"));
  CHECK_THAT(refused(published_config("130528", R"("pad_token_id": 3)")),
             Catch::Matchers::Contains("bos_token_id, eos_token_id"));
  CHECK_THAT(refused(published_config("130003", kTokens)), Catch::Matchers::Contains("below vocab_size"));
  CHECK_THAT(refused(published_config("130528", R"("bos_token_id": 130004, "eos_token_id": 130004)")),
             Catch::Matchers::Contains("different"));
  const auto edited = [](const std::string& key, const formats::Json& value) {
    auto json = formats::parse_json(published_config("130528", kTokens), "c");
    json[key] = value;
    return json.dump();
  };
  CHECK_THAT(refused(edited("gmask_token_id", 130528)), Catch::Matchers::Contains("gmask_token_id must be below vocab_size"));
  CHECK_THAT(refused(edited("model_type", "llama")), Catch::Matchers::Contains("chatglm"));
  CHECK_THAT(refused(edited("position_encoding_2d", false)), Catch::Matchers::Contains("position_encoding_2d"));
  CHECK_THAT(refused(edited("quantization_bit", 4)), Catch::Matchers::Contains("quantization_bit"));
  CHECK_THAT(refused(edited("vocab_size", nullptr)), Catch::Matchers::Contains("vocab_size"));
  CHECK_THAT(refused(edited("num_attention_heads", 3)), Catch::Matchers::Contains("multiple of 4"));
  CHECK_THAT(refused(edited("num_layers", -1)), Catch::Matchers::Contains("num_layers"));
  CHECK_THAT(refused(edited("num_layers", "two")), Catch::Matchers::Contains("integer"));
  CHECK_THAT(refused(edited("rope_inv_freq_dtype", "bfloat16")), Catch::Matchers::Contains("rope_inv_freq_dtype"));
  CHECK_THAT(refused(edited("torch_dtype", "int8")), Catch::Matchers::Contains("dtype"));
  CHECK_THAT(refused("[]"), Catch::Matchers::Contains("object"));
  CHECK_THROWS_AS(glm::glm_preset("chatglm2-6b"), ConfigError);
  CHECK_THROWS_AS(tiny_glm_config({{"num_hidden_layers", "3"}}), ConfigError);
  CHECK_THROWS_AS(tiny_glm_config({{"gmask_token_id", "50"}}), ConfigError);
}

TEST_CASE("glm: a model on the meta device has the published number of parameters", "[glm]") {
  const auto count = [](bool is_tied) {
    auto config = glm::glm_preset("chatglm-6b");
    config.tie_word_embeddings = is_tied;
    GlmImpl model(config, nn::ParameterOptions{at::kHalf, at::kMeta, /*initialize=*/false});
    const auto adapters = inject(model, LoraOptions{.rank = 8, .targets = model.default_targets()});
    const auto report = freeze_base(model, adapters);
    CHECK(report.trainable == 3'670'016);
    return report.total - report.trainable;
  };
  CHECK(count(false) == 6'707'929'088);
  CHECK(count(true) == 6'173'286'400);
}

TEST_CASE("glm: logits and losses are the reference's, in both variants", "[glm]") {
  struct Variant {
    const char* name;
    int64_t alpha_layers;
    DType rope;
  };
  const auto folder = reference_folder() / "glm";
  auto expected = io::load_safetensors(folder / "expected.safetensors");
  const auto losses = formats::parse_json(read_file(folder / "expected.json"), "expected.json");
  for (const auto& [name, alpha_layers, rope] :
       {Variant{"layers_fp32rope", 2, DType::kF32}, Variant{"alpha28_fp16rope", 28, DType::kF16}}) {
    for (const auto& fast : {nn::FastPaths(), nn::FastPaths::none()}) {
      INFO(name << ", fast " << fast.joined);
      const ScratchFolder copy;
      auto config = glm::read_glm_config(folder);
      config.residual_alpha_layers = alpha_layers;
      config.rope_inv_freq_dtype = rope;
      copy.write("config.json", glm::write_glm_config(config));
      std::filesystem::copy_file(folder / "model.safetensors", copy / "model.safetensors");
      const auto model = glm::load(copy.path());
      model->fast_paths = fast;
      Batch batch;
      batch.input_ids_BS = expected.at("in.input_ids");
      // The losses are of labels that stand one place before their tokens.
      batch.labels_BS = at::constant_pad_nd(expected.at("in.labels_shifted").slice(1, 0, 15), {1, 0}, kIgnoreLabel);
      CHECK(difference(model->forward(batch), expected.at(std::string("out.logits.") + name)) < 2e-5);
      const double sum = nn::causal_lm_loss_sum(*model, batch).item<double>();
      const auto loss = [&](const char* kind) { return std::stod(losses.at(std::string(kind) + "_" + name).get<std::string>()); };
      const auto targets = static_cast<double>(targets_of(batch).label_T.numel());
      CHECK(std::abs(sum / targets - loss("loss_valid_tokens")) < 1e-6);
      CHECK(std::abs(sum / static_cast<double>(batch.input_ids_BS.numel()) - loss("loss_all_positions")) < 1e-6);
    }
  }
}

TEST_CASE("glm: states are chatglm.cpp's golden ones, with a cache in three steps", "[glm]") {
  const auto file = outside_data("data/chatglm_cpp_goldens/glm_model.data");
  if (!file) return;
  Golden golden(*file);
  const auto model = golden_model(golden);
  check_three_steps(*model, golden, 1e-6);
}

TEST_CASE("glm: P-tuning v2 gives chatglm.cpp's golden states", "[glm]") {
  const auto file = outside_data("data/chatglm_cpp_goldens/glm_ptuning_v2_model.data");
  if (!file) return;
  Golden golden(*file);
  const at::Tensor prefix = golden.next({2, 8, 5, 4}, at::kHalf).to(at::kFloat);
  const auto model = golden_model(golden);
  const auto adapters = attach_prefix(*model, 5);
  {
    const torch::NoGradGuard no_grad;
    adapters.prompt()->embedding_weight.copy_(prefix.permute({2, 0, 1, 3}).reshape({5, -1}));
  }
  check_three_steps(*model, golden, 1e-5);
  CHECK(model->longest_row() == 16);  // its positions are the tokens' own
}

TEST_CASE("glm: backward equals finite differences", "[glm]") {
  seed_generators(21);
  const auto kind = GENERATE(Virtual::kNone, Virtual::kPrefix, Virtual::kPrompt);
  const bool is_packed = GENERATE(false, true), is_fast = GENERATE(true, false);
  INFO("virtual tokens " << static_cast<int>(kind) << ", packed " << is_packed << ", fast " << is_fast);
  auto model =
      tiny_glm(22, {{"hidden_size", "8"}, {"num_attention_heads", "2"}, {"inner_hidden_size", "6"}, {"num_layers", "1"}});
  if (kind == Virtual::kPrefix) attach_prefix(*model, 2);
  if (kind == Virtual::kPrompt) attach_prompt(*model, 2);
  model->to(at::kDouble);
  model->fast_paths = is_fast ? nn::FastPaths() : nn::FastPaths::none();
  std::vector<at::Tensor> parameters;
  for (auto& entry : model->named_parameters()) {
    entry.value().set_requires_grad(true);
    const bool is_table = entry.key().ends_with("word_embeddings.weight") || entry.key() == "lm_head.weight";
    if (!is_table) parameters.push_back(entry.value());  // 800 numbers more, which other tests cover
  }
  const std::vector<data::Example> rows = {glm_example(3, 2), glm_example(4, 3)};
  const Batch batch = is_packed ? data::collate_packed(pointers_to(rows), kPad, 16) : data::collate(pointers_to(rows), kPad);
  check_gradients([&](const auto&) { return nn::causal_lm_loss_sum(*model, batch); }, parameters, 1e-6);
}

TEST_CASE("glm: a cache gives the logits of one whole pass", "[glm]") {
  const auto kind = GENERATE(Virtual::kNone, Virtual::kPrefix, Virtual::kPrompt);
  const auto model = model_with(kind);
  model->fast_paths = GENERATE(nn::FastPaths(), nn::FastPaths::none());
  const torch::NoGradGuard no_grad;
  const auto ids = glm_ids(6, 7);
  const at::Tensor whole = model->forward(glm_batch(ids));
  nn::KvCache cache(model->num_layers());
  for (const auto& [begin, end] : std::vector<std::pair<int64_t, int64_t>>{{0, 7}, {7, 8}, {8, 11}, {11, 14}}) {
    const auto part = model->forward(glm_batch({ids.begin() + begin, ids.begin() + end}), &cache);
    CHECK(difference(part, whole.slice(1, begin, end)) < 1e-5);
  }
  CHECK(cache.length() == 14);
  cache.cut_back(9);
  CHECK(difference(model->forward(glm_batch({ids.begin() + 9, ids.begin() + 11}), &cache), whole.slice(1, 9, 11)) < 1e-5);
  cache.cut_back(3);
  CHECK_THROWS_AS(model->forward(glm_batch({ids[3]}), &cache), ShapeError);
  nn::KvCache of_others(model->num_layers());
  of_others.advance(4);
  CHECK_THROWS_AS(model->forward(glm_batch({ids[3]}), &of_others), ShapeError);
}

TEST_CASE("glm: rows padded on the left give what they give alone, with a cache too", "[glm]") {
  const auto kind = GENERATE(Virtual::kNone, Virtual::kPrefix, Virtual::kPrompt);
  const auto model = model_with(kind);
  const torch::NoGradGuard no_grad;
  const std::vector<std::vector<int64_t>> rows = {glm_ids(7, 3), glm_ids(3, 3)};
  Batch batch = glm_batch(rows[0]);
  std::vector<int64_t> padded(4, kPad);
  padded.insert(padded.end(), rows[1].begin(), rows[1].end());
  batch.input_ids_BS = at::cat({batch.input_ids_BS, glm_batch(padded).input_ids_BS});
  batch.attention_mask_BS = at::ones({2, 11}, at::kLong);
  batch.attention_mask_BS[1].slice(0, 0, 4).zero_();

  const at::Tensor together = model->forward(batch);
  CHECK(together.isfinite().all().item<bool>());
  CHECK(difference(together[0], model->forward(glm_batch(rows[0]))[0]) < 1e-5);
  CHECK(difference(together[1].slice(0, 4), model->forward(glm_batch(rows[1]))[0]) < 1e-5);

  nn::KvCache cache(model->num_layers());
  Batch part = batch;
  for (const auto& [begin, end] : std::vector<std::pair<int64_t, int64_t>>{{0, 8}, {8, 9}, {9, 11}}) {
    part.input_ids_BS = batch.input_ids_BS.slice(1, begin, end);
    part.attention_mask_BS = batch.attention_mask_BS.slice(1, 0, end);
    const at::Tensor logits = model->forward(part, &cache), expected = together.slice(1, begin, end);
    CHECK(difference(logits[0], expected[0]) < 1e-5);
    CHECK(difference(logits[1].slice(0, begin == 0 ? 4 : 0), expected[1].slice(0, begin == 0 ? 4 : 0)) < 1e-5);
  }
}

TEST_CASE("glm: a row of padding alone, and padding on the right, leave numbers", "[glm]") {
  const auto model = model_with(Virtual::kNone);
  const torch::NoGradGuard no_grad;
  auto ids = glm_ids(3, 2);
  const at::Tensor alone = model->forward(glm_batch(ids));
  ids.insert(ids.end(), {kPad, kPad});
  Batch batch = glm_batch(ids);
  CHECK(difference(model->forward(batch).slice(1, 0, 6), alone) < 1e-5);
  batch.input_ids_BS = at::cat({batch.input_ids_BS, at::full({1, 8}, kPad, at::kLong)});
  batch.attention_mask_BS = at::cat({at::ones({1, 8}, at::kLong), at::zeros({1, 8}, at::kLong)});
  batch.attention_mask_BS[0].slice(0, 6).zero_();
  const at::Tensor logits = model->forward(batch);
  CHECK(logits.isfinite().all().item<bool>());
  CHECK(difference(logits[0].slice(0, 0, 6), alone[0]) < 1e-5);
}

TEST_CASE("glm: the prompt is seen by all, an answer's token by what follows it", "[glm]") {
  const auto model = model_with(Virtual::kNone);
  model->fast_paths = GENERATE(nn::FastPaths(), nn::FastPaths::none());
  const torch::NoGradGuard no_grad;
  const auto ids = glm_ids(5, 5);  // 0 to 3 text, 4 [gMASK], 5 <sop>, 6 to 10 answer
  const at::Tensor before = model->forward(glm_batch(ids))[0];
  const auto changed_places = [&](size_t place) {
    auto changed = ids;
    changed[place] = changed[place] == 10 ? 11 : 10;
    const at::Tensor after = model->forward(glm_batch(changed))[0];
    std::vector<int64_t> places;
    for (int64_t i = 0; i < after.size(0); ++i) {
      if (!at::equal(after[i], before[i])) places.push_back(i);
    }
    return places;
  };
  CHECK(changed_places(8) == std::vector<int64_t>{8, 9, 10});
  CHECK(changed_places(10) == std::vector<int64_t>{10});
  for (const size_t place : {0, 3}) CHECK(changed_places(place) == std::vector<int64_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10});
}

TEST_CASE("glm: positions are those of the reference", "[glm]") {
  auto expected = io::load_safetensors(reference_folder() / "glm/expected.safetensors");
  Batch batch;
  batch.input_ids_BS = expected.at("in.input_ids");
  const auto places = glm::prompt_places(batch, glm::read_glm_config(reference_folder() / "glm"));
  const auto [sequence, answer] = glm::positions_of(places, 0, batch.input_ids_BS.size(1), {}, {}, 0, at::kCPU);
  CHECK(at::equal(at::stack({sequence, answer}, 1), expected.at("in.position_ids")));
}

TEST_CASE("glm: the answer's position is that of [gMASK], else of [MASK]", "[glm]") {
  const auto config = tiny_glm_config();
  const auto positions = [&](const std::vector<int64_t>& ids, int64_t embedded = 0) {
    const auto places = glm::prompt_places(glm_batch(ids), config);
    const auto [sequence, answer] =
        glm::positions_of(places, 0, static_cast<int64_t>(ids.size()), {}, {2, embedded}, embedded, at::kCPU);
    return std::pair(std::vector<int64_t>(sequence.data_ptr<int64_t>(), sequence.data_ptr<int64_t>() + sequence.numel()),
                     std::vector<int64_t>(answer.data_ptr<int64_t>(), answer.data_ptr<int64_t>() + answer.numel()));
  };
  using Ids = std::vector<int64_t>;
  // Two prefix places stand before each.
  CHECK(positions({5, kMask, 6, kSop, 7, 8}) == std::pair(Ids{0, 0, 0, 1, 2, 1, 1, 1}, Ids{0, 0, 0, 0, 0, 1, 2, 3}));
  CHECK(positions({5, kMask, 6, kGmask, kSop, 7}) == std::pair(Ids{0, 0, 0, 1, 2, 3, 3, 3}, Ids{0, 0, 0, 0, 0, 0, 1, 2}));
  CHECK(positions({5, kMask, 6, kSop, kGmask}).first == Ids{0, 0, 0, 1, 2, 1, 1});
  // Embeddings of virtual tokens are the first of the prompt.
  CHECK(positions({5, kGmask, kSop, 7}, 3) == std::pair(Ids{0, 0, 0, 1, 2, 3, 4, 4, 4}, Ids{0, 0, 0, 0, 0, 0, 0, 1, 2}));
}

TEST_CASE("glm: rows without one <sop> or without a mask are errors that name the row", "[glm]") {
  const auto model = model_with(Virtual::kNone);
  const auto refused = [&](const Batch& batch) { return message_of<DataError>([&] { model->forward(batch); }); };
  CHECK_THAT(refused(glm_batch({5, kGmask, 6})), Catch::Matchers::Contains("[row 0]") && Catch::Matchers::Contains("found 0"));
  Batch two = glm_batch({5, kGmask, kSop, kEop});
  two.input_ids_BS = at::cat({two.input_ids_BS, glm_batch({kGmask, kSop, 6, kSop}).input_ids_BS});
  two.rows = {17, 23};
  CHECK_THAT(refused(two), Catch::Matchers::Contains("[row 23]") && Catch::Matchers::Contains("found 2"));
  CHECK_THAT(refused(glm_batch({5, 6, kSop, kGmask})), Catch::Matchers::Contains("[gMASK]"));
  Batch packed = glm_batch({5, kGmask, kSop, kEop, 6, 7, kSop, kSop});
  packed.segment_lengths = {4, 4};
  CHECK_THAT(refused(packed), Catch::Matchers::Contains("[row 1]"));
  packed.segment_lengths = {4, 5};
  CHECK_THROWS_AS(model->forward(packed), ShapeError);
  Batch placed = glm_batch({5, kGmask, kSop, kEop});
  placed.position_ids_BS = at::arange(4, at::kLong).unsqueeze(0);
  CHECK_THROWS_AS(model->forward(placed), ShapeError);
  CHECK_THROWS_AS(model->forward(glm_batch(glm_ids(200, 60))), ShapeError);
}

namespace {

struct Result {
  double loss;
  std::vector<at::Tensor> gradients;
};

Result run(GlmImpl& model, const Batch& batch, at::ScalarType amp_dtype = at::kFloat) {
  at::Tensor loss;
  {
    const AutocastGuard autocast(at::kCPU, amp_dtype);
    loss = nn::causal_lm_loss_sum(model, batch) / batch.num_targets;
  }
  loss.backward();
  Result result{loss.item<double>(), {}};
  for (at::Tensor parameter : model.parameters()) {
    if (!parameter.requires_grad()) continue;
    REQUIRE(parameter.grad().defined());
    result.gradients.push_back(parameter.grad().clone());
    parameter.mutable_grad() = at::Tensor();
  }
  return result;
}

void check_close(const Result& found, const Result& expected) {
  CHECK(found.loss == Approx(expected.loss).epsilon(1e-6));
  REQUIRE(found.gradients.size() == expected.gradients.size());
  for (size_t i = 0; i < found.gradients.size(); ++i) {
    const double scale = std::max(1.0, expected.gradients[i].abs().max().item<double>());
    CHECK(difference(found.gradients[i], expected.gradients[i]) < 2e-6 * scale);
  }
}

void check_packed_equals_padded(GlmImpl& model) {
  std::vector<data::Example> rows;
  for (const auto& [context, answer] :
       std::vector<std::pair<int64_t, int64_t>>{{3, 2}, {40, 30}, {1, 1}, {70, 5}, {9, 20}, {2, 70}}) {
    rows.push_back(glm_example(context, answer));
  }
  const auto padded = run(model, data::collate(pointers_to(rows), kPad));
  check_close(run(model, data::collate_packed(pointers_to(rows), kPad, 64)), padded);
}

}  // namespace

TEST_CASE("glm: packed rows give the losses and gradients of rows alone", "[glm]") {
  auto model = tiny_glm();
  model->fast_paths = GENERATE(nn::FastPaths(), nn::FastPaths::none());
  SECTION("full fine-tuning") { check_packed_equals_padded(*model); }
  SECTION("LoRA") {
    freeze_base(*model, inject(*model, lora_everywhere()));
    check_packed_equals_padded(*model);
  }
  SECTION("a prefix") {
    freeze_base(*model, attach_prefix(*model, 3));
    check_packed_equals_padded(*model);
  }
  SECTION("a prompt of embeddings") {
    freeze_base(*model, attach_prompt(*model, 3));
    check_packed_equals_padded(*model);
  }
}

TEST_CASE("glm: recomputing changes no bit of losses and gradients", "[glm]") {
  auto model = tiny_glm();
  model->train();
  const auto amp_dtype = GENERATE(at::kFloat, at::kBFloat16);
  const bool is_packed = GENERATE(false, true);
  SECTION("LoRA with dropout") {
    auto options = lora_everywhere();
    options.dropout = 0.3;
    freeze_base(*model, inject(*model, options));
  }
  SECTION("a prefix from a network, with dropout") { freeze_base(*model, attach_prefix(*model, 3, true, 0.1)); }
  SECTION("full fine-tuning") {}
  const std::vector<data::Example> rows = {glm_example(5, 6), glm_example(9, 3)};
  const Batch batch = is_packed ? data::collate_packed(pointers_to(rows), kPad) : data::collate(pointers_to(rows), kPad);
  std::vector<Result> results;
  for (const auto recompute : {nn::Recompute::kNone, nn::Recompute::kSelective, nn::Recompute::kFull}) {
    model->recompute = recompute;
    at::manual_seed(5);  // dropout draws the same numbers in every run
    results.push_back(run(*model, batch, amp_dtype));
  }
  for (const auto& result : results) {
    CHECK(result.loss == results.front().loss);
    for (size_t i = 0; i < result.gradients.size(); ++i) CHECK(at::equal(result.gradients[i], results.front().gradients[i]));
  }
}

TEST_CASE("glm: adapters of every kind learn, and a LoRA merges and is saved", "[glm]") {
  auto model = tiny_glm();
  const std::vector<data::Example> rows = {glm_example(5, 6), glm_example(9, 3), glm_example(2, 12)};
  const Batch batch = data::collate(pointers_to(rows), kPad);
  const auto loss = [&] { return nn::causal_lm_loss_sum(*model, batch) / batch.num_targets; };
  const auto learns = [&](const AdapterSet& adapters) {
    freeze_base(*model, adapters);
    const double before = loss().item<double>();
    std::vector<at::Tensor> squares;
    for (const auto& parameter : adapters.parameters()) squares.push_back(at::zeros_like(parameter));
    for (int step = 0; step < 60; ++step) {
      loss().backward();
      const torch::NoGradGuard no_grad;
      for (size_t i = 0; i < squares.size(); ++i) {
        at::Tensor parameter = adapters.parameters()[i];
        squares[i].mul_(0.9).add_(parameter.grad().square(), 0.1);
        parameter.sub_(parameter.grad() / (squares[i].sqrt() + 1e-8), 0.02);
        parameter.mutable_grad() = at::Tensor();
      }
    }
    CHECK(loss().item<double>() < 0.7 * before);
  };
  const auto logits = [&](GlmImpl& of) {
    const torch::NoGradGuard no_grad;
    of.eval();
    return of.forward(batch);
  };
  const auto check_loads = [&](const AdapterSet& adapters) {
    const ScratchFolder folder;
    save_adapter(adapters, folder.path());
    const auto other = tiny_glm();
    load_adapter(*other, folder.path());
    CHECK(difference(logits(*other), logits(*model)) < 1e-5);
  };
  SECTION("LoRA on the fused projection") {
    const auto adapters = inject(*model, LoraOptions{.rank = 8, .alpha = 16, .targets = model->default_targets()});
    CHECK(adapters.slots().size() == 2);
    learns(adapters);
    check_loads(adapters);
    const at::Tensor adapted = logits(*model);
    AdapterSet merged = adapters;
    merged.merge();
    CHECK(difference(logits(*model), adapted) < 1e-4);
  }
  SECTION("P-tuning v2") {
    const auto adapters = attach_prefix(*model, 6);
    learns(adapters);
    check_loads(adapters);
  }
  SECTION("P-tuning v2 from a network") {
    const auto adapters = attach_prefix(*model, 6, /*projection=*/true);
    learns(adapters);
    check_loads(adapters);
  }
  SECTION("bottleneck adapters") {
    BottleneckOptions options = bottleneck_preset("houlsby");
    options.reduction_factor = 2;
    learns(inject(*model, options));
  }
}

TEST_CASE("glm: saved whole or in shards, loaded the same; tied models too", "[glm]") {
  const torch::NoGradGuard no_grad;
  for (const char* tied : {"false", "true"}) {
    const auto model = tiny_glm(11, {{"tie_word_embeddings", tied}});
    for (const uint64_t shard_bytes : {uint64_t{8000}, uint64_t{1} << 30}) {
      const ScratchFolder folder;
      glm::save(*model, folder.path(), {.dtype = std::nullopt, .copy_tokenizer_from = std::nullopt, .shard_bytes = shard_bytes});
      CHECK(std::filesystem::exists(folder / "model.safetensors.index.json") == (shard_bytes == 8000));
      const auto loaded = glm::load(folder.path());
      CHECK(loaded->config == model->config);
      const auto batch = glm_batch(glm_ids(4, 3));
      CHECK(at::equal(loaded->forward(batch), model->forward(batch)));
      const auto streamed = glm::load(folder.path(), {.offload = nn::Offload::kDisk});
      CHECK(streamed->transformer->layers[0]->as<glm::GlmLayerImpl>()->attention->query_key_value->weight_is_streamed());
      CHECK(at::equal(streamed->forward(batch), model->forward(batch)));
    }
  }
}

TEST_CASE("glm: in half precision norms stay in fp32, in memory and in files", "[glm]") {
  const torch::NoGradGuard no_grad;
  const ScratchFolder folder;
  const auto model = tiny_glm();
  glm::save(*model, folder.path(), {.dtype = DType::kF16, .copy_tokenizer_from = std::nullopt});
  const auto stored = io::load_safetensors(folder / "model.safetensors");
  for (const auto& [name, tensor] : stored) {
    CHECK(tensor.scalar_type() == (name.find("layernorm") == std::string::npos ? at::kHalf : at::kFloat));
  }
  const auto loaded = glm::load(folder.path());
  CHECK(loaded->config.dtype == DType::kF16);
  const auto parameters = loaded->named_parameters();
  for (const auto& [name, tensor] : stored) CHECK(at::equal(parameters[name], tensor));
  const auto batch = glm_batch(glm_ids(4, 3));
  CHECK(difference(loaded->forward(batch), model->forward(batch)) < 0.05);
  CHECK(difference(glm::load(folder.path(), {.dtype = at::kFloat})->forward(batch), loaded->forward(batch)) < 0.05);
}

TEST_CASE("glm: what every model can compute may lie beside its weights, and nothing else", "[glm]") {
  const ScratchFolder folder;
  const auto model = tiny_glm(11, {{"tie_word_embeddings", "true"}});
  glm::save(*model, folder.path());
  const Path file = folder / "model.safetensors";
  auto tensors = io::load_safetensors(file);
  const auto save = [&] { io::save_safetensors(file, io::NamedTensors(tensors.begin(), tensors.end())); };
  tensors["transformer.layers.0.attention.rotary_emb.inv_freq"] = at::ones({2});
  tensors["lm_head.weight"] = tensors.at("transformer.word_embeddings.weight");
  save();
  const auto batch = glm_batch(glm_ids(4, 3));
  CHECK(at::equal(glm::load(folder.path())->forward(batch), model->forward(batch)));
  tensors["lm_head.weight"] = at::zeros({50, 32});  // another one is no table that two share
  save();
  CHECK(glm::load(folder.path())->forward(batch).eq(0).all().item<bool>());
  const auto refused = [&] {
    save();
    return message_of<ShapeError>([&] { glm::load(folder.path()); });
  };
  tensors["transformer.prefix_encoder.embedding.weight"] = at::ones({2});
  CHECK_THAT(refused(), Catch::Matchers::Contains("unknown: transformer.prefix_encoder"));
  CHECK_THAT(refused(), Catch::Matchers::Contains("read as an adapter"));
  tensors.erase("transformer.prefix_encoder.embedding.weight");
  tensors["transformer.layers.1.attention.dense.bias"] = at::ones({31});
  CHECK_THAT(refused(), Catch::Matchers::Contains("wrong shape: transformer.layers.1.attention.dense.bias [31] instead of [32]"));
  tensors.erase("transformer.layers.1.attention.dense.bias");
  CHECK_THAT(refused(), Catch::Matchers::Contains("missing: transformer.layers.1.attention.dense.bias"));
  CHECK_THROWS_AS(glm::load(folder / "none"), IoError);
}

TEST_CASE("glm: weights in few bits, and files that keep them", "[glm]") {
  const torch::NoGradGuard no_grad;
  const ScratchFolder folder, quantized;
  glm::save(*tiny_glm(), folder.path());
  const auto model = glm::load(folder.path(), {.quantization = QuantizationScheme{QuantizedType::kNf4, 64, false}});
  CHECK(nn::few_bits_of(*model).layers == 8);
  const auto batch = glm_batch(glm_ids(4, 3));
  CHECK(difference(model->forward(batch), glm::load(folder.path())->forward(batch)) > 1e-3);
  glm::save(*model, quantized.path(), {.dtype = std::nullopt, .copy_tokenizer_from = std::nullopt, .quantized = true});
  CHECK(at::equal(glm::load(quantized.path())->forward(batch), model->forward(batch)));
}

TEST_CASE("glm: tokenizer files go where the model goes", "[glm]") {
  const ScratchFolder from, directory, file;
  from.write("ice_text.model", "pieces");
  from.write("tokenizer_config.json", "{}");
  const auto model = tiny_glm();
  glm::save(*model, directory.path(), {.dtype = std::nullopt, .copy_tokenizer_from = from.path()});
  CHECK(read_file(directory / "ice_text.model") == "pieces");
  CHECK(std::filesystem::exists(directory / "tokenizer_config.json"));
  glm::save(*model, file.path(), {.dtype = std::nullopt, .copy_tokenizer_from = from / "ice_text.model"});
  CHECK(read_file(file / "ice_text.model") == "pieces");
}

TEST_CASE("glm: shapes for the memory plan need no weights", "[glm]") {
  GlmImpl model(glm::glm_preset("chatglm-6b"), nn::ParameterOptions{at::kHalf, at::kMeta, /*initialize=*/false});
  freeze_base(model, inject(model, LoraOptions{.rank = 8, .targets = model.default_targets()}));
  const auto shapes = glm::shapes_of(model);
  CHECK(shapes.layers.size() == 28);
  CHECK(shapes.vocabulary == 130528);
  CHECK(shapes.layers[3].qkv.size() == 1);
  CHECK(shapes.layers[3].qkv[0].out == 12288);
  CHECK(shapes.layers[3].qkv[0].rank == 8);
  CHECK(shapes.layers[3].gate_up[0].numbers() == 4096 * 16384);
  CHECK(shapes.layers[3].down[0].rank == 0);
  CHECK(shapes.weight_dtype == at::kHalf);
}
