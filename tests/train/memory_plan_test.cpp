#include "lora/train/memory_plan.h"

#include <ATen/ATen.h>
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>
#include <array>
#include <map>
#include <numeric>
#include <set>

#include "catch.h"
#include "lora/adapters/freeze.h"
#include "lora/adapters/inject.h"
#include "lora/data/collate.h"
#include "lora/models/glm/model.h"
#include "lora/models/glm/shapes.h"
#include "lora/models/llama/model.h"
#include "lora/models/llama/shapes.h"
#include "lora/ops/device.h"
#include "lora/ops/frozen_linear.h"
#include "lora/ops/segments.h"
#include "lora/train/trainer.h"

namespace lora::train {
namespace {

/// Bytes of the tensors that exist, and the most that ever did, as LibTorch's allocator reports them.
class TensorMeter : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void*, int64_t size, size_t, size_t, c10::Device) override {
    now_ += size;
    most_ = std::max(most_, now_);
  }
  bool memoryProfilingEnabled() const override { return true; }
  double most() const { return static_cast<double>(most_); }

 private:
  int64_t now_ = 0, most_ = 0;
};

llama::LlamaConfig small_config(int64_t kv_heads = 4, bool tied = false) {
  llama::LlamaConfig config;
  config.hidden_size = 128;
  config.intermediate_size = 352;
  config.num_hidden_layers = 3;
  config.num_attention_heads = 4;
  config.num_key_value_heads = kv_heads;
  config.head_dim = 32;
  config.vocab_size = 512;
  config.max_position_embeddings = 256;
  config.tie_word_embeddings = tied;
  return config;
}

/// Four times as wide a feed-forward, as in every ChatGLM.
glm::GlmConfig small_glm(bool tied = false) {
  glm::GlmConfig config;
  config.vocab_size = 512;
  config.hidden_size = 128;
  config.inner_hidden_size = 512;
  config.num_layers = config.residual_alpha_layers = 3;
  config.num_attention_heads = 4;
  config.max_sequence_length = 256;
  config.mask_token_id = 506;
  config.gmask_token_id = 507;
  config.bos_token_id = 510;
  config.eos_token_id = 511;
  config.tie_word_embeddings = tied;
  return config;
}

/// What one case of this file trains; neither LoRA nor another method: everything.
struct Case {
  llama::LlamaConfig config = small_config();
  std::optional<glm::GlmConfig> glm = {};  ///< instead of the Llama
  at::ScalarType dtype = at::kFloat, amp_dtype = at::kFloat;
  std::optional<LoraOptions> lora = LoraOptions{};
  std::optional<MethodOptions> method = {};  ///< instead of LoRA
  FreezeRules rules = {};
  OptimizerOptions optimizer = {};
  nn::Recompute recompute = nn::Recompute::kNone;
  std::optional<QuantizationScheme> quantization = {};
  std::vector<std::string> disabled = {};
  int64_t micro_batch = 8, row_tokens = 64, grad_accum = 1;
  std::vector<int64_t> packed = {};  ///< lengths of sequences that make one packed row, instead of rows of tokens
};

struct Made {
  std::shared_ptr<nn::CausalLMImpl> model;
  AdapterSet adapters;
};

std::shared_ptr<nn::CausalLMImpl> make_model(const Case& one, const at::Device& device) {
  const nn::ParameterOptions parameters{.dtype = one.dtype, .device = device, .quantization = one.quantization};
  if (one.glm) return std::make_shared<glm::ChatGlmForConditionalGenerationImpl>(*one.glm, parameters);
  return std::make_shared<llama::LlamaForCausalLMImpl>(one.config, parameters);
}

nn::DecoderShapes shapes_of(nn::CausalLMImpl& model) {
  if (auto* glm = dynamic_cast<glm::ChatGlmForConditionalGenerationImpl*>(&model)) return glm::shapes_of(*glm);
  return llama::shapes_of(dynamic_cast<llama::LlamaForCausalLMImpl&>(model));
}

Made make(const Case& one, const at::Device& device) {
  seed_generators(1);
  Made made;
  made.model = make_model(one, device);
  made.model->fast_paths.release_plain = true;
  for (const auto& name : one.disabled) made.model->fast_paths.at(name) = false;
  made.model->recompute = one.recompute;
  if (one.method) {
    made.adapters = inject_method(*made.model, *one.method);
  } else if (one.lora) {
    made.adapters = inject(*made.model, *one.lora);
  }
  made.adapters ? freeze_base(*made.model, made.adapters, one.rules) : train_all(*made.model, one.rules);
  return made;
}

/// From a model on the meta device, as the program does.
MemoryInputs inputs_of(const Case& one) {
  const Made made = make(one, at::kMeta);
  MemoryInputs inputs;
  inputs.shapes = shapes_of(*made.model);
  inputs.parameters = parameter_memory(*made.model, made.adapters, one.optimizer);
  inputs.fast_paths = made.model->fast_paths;
  inputs.recompute = one.recompute;
  inputs.amp_dtype = one.amp_dtype;
  inputs.packing_pays = ops::PackedWeight::pays(one.amp_dtype == at::kFloat ? inputs.shapes.stream_dtype : one.amp_dtype);
  inputs.micro_batch = one.micro_batch;
  inputs.row_tokens = one.row_tokens;
  inputs.grad_accum = one.grad_accum;
  if (!one.packed.empty()) {
    inputs.packed_rows = true;
    inputs.micro_batch = 1;
    inputs.row_tokens = std::accumulate(one.packed.begin(), one.packed.end(), int64_t{0});
    inputs.longest_sequence = *std::ranges::max_element(one.packed);
    inputs.sequences_per_row = static_cast<double>(one.packed.size());
    const auto places = ops::segments_of(one.packed, at::kCPU).index_P.numel();
    inputs.places_per_token = static_cast<double>(places) / static_cast<double>(inputs.row_tokens);
  }
  return inputs;
}

TrainerOptions trainer_options(const Case& one) {
  TrainerOptions options;
  options.amp_dtype = one.amp_dtype;
  options.optimizer = one.optimizer;
  return options;
}

Batch packed_batch(const Case& one) {
  std::vector<data::Example> rows;
  for (const int64_t length : one.packed) {
    data::Example& row = rows.emplace_back();
    row.input_ids.assign(static_cast<size_t>(length), 7);
    if (one.glm)
      std::ranges::copy(std::array{one.glm->gmask_token_id, one.glm->bos_token_id}, row.input_ids.begin() + length / 3);
    row.labels = row.input_ids;
  }
  std::vector<const data::Example*> pointers;
  for (const auto& row : rows) pointers.push_back(&row);
  return data::collate_packed(pointers, 0, 64);
}

Batch random_batch(const Case& one) {
  if (!one.packed.empty()) return packed_batch(one);
  Batch batch;
  batch.input_ids_BS = at::randint(0, one.config.vocab_size, {one.micro_batch, one.row_tokens}, at::kLong);
  if (one.glm) {
    batch.input_ids_BS.clamp_max_(one.glm->mask_token_id - 1);
    batch.input_ids_BS.select(1, one.row_tokens / 3).fill_(one.glm->gmask_token_id);
    batch.input_ids_BS.select(1, one.row_tokens / 3 + 1).fill_(one.glm->bos_token_id);
  }
  batch.labels_BS = batch.input_ids_BS;
  batch.num_tokens = one.micro_batch * one.row_tokens;
  batch.num_targets = one.micro_batch * (one.row_tokens - 1);
  batch.num_first_targets = one.micro_batch;
  return batch;
}

/// The most bytes of tensors that making the model and two real steps ever had.
double measured_bytes(const Case& one) {
  const auto meter = std::make_shared<TensorMeter>();
  const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, meter);
  Made made = make(one, at::kCPU);
  Trainer trainer(made.model, made.adapters, trainer_options(one));
  const std::vector<Batch> batches(static_cast<size_t>(one.grad_accum), random_batch(one));
  for (int step = 0; step < 2; ++step) trainer.step(batches);
  return meter->most();
}

Case full_case() {
  Case one;
  one.lora.reset();
  return one;
}

LoraOptions all_linear() {
  LoraOptions options;
  options.rank = 16;
  options.targets = "all-linear";
  return options;
}

std::vector<std::pair<std::string, Case>> glm_cases() {
  std::vector<std::pair<std::string, Case>> all;
  const auto add = [&](const std::string& name, auto change) {
    Case one{.glm = small_glm()};
    one.lora->targets = std::vector<std::string>{"query_key_value"};
    change(one);
    all.emplace_back("GLM, " + name, one);
  };
  const std::vector<int64_t> lengths = {60, 33, 17, 64, 21, 50, 64, 40, 60, 12, 38};
  const PrefixOptions v2{.num_virtual_tokens = 20};
  add("fp32", [](Case&) {});
  add("bf16", [](Case& one) { one.dtype = at::kBFloat16; });
  add("bf16 over fp32", [](Case& one) { one.amp_dtype = at::kBFloat16; });
  add("all linear", [](Case& one) { one.lora = all_linear(); });
  add("all linear bf16, tied, long rows", [](Case& one) {
    one.glm = small_glm(true);
    one.lora = all_linear();
    one.dtype = at::kBFloat16;
    one.micro_batch = 2;
    one.row_tokens = 240;
  });
  add("dropout", [](Case& one) { one.lora->dropout = 0.1; });
  for (const auto& [kind, recompute] :
       {std::pair{"full", nn::Recompute::kFull}, std::pair{"selective", nn::Recompute::kSelective}}) {
    add(std::string("recompute ") + kind, [recompute](Case& one) { one.recompute = recompute; });
    add(std::string("recompute ") + kind + " bf16, all linear", [recompute](Case& one) {
      one.lora = all_linear();
      one.dtype = at::kBFloat16;
      one.recompute = recompute;
    });
  }
  add("everything", [](Case& one) { one.lora.reset(); });
  add("everything, accumulated", [](Case& one) {
    one.lora.reset();
    one.grad_accum = 3;
  });
  add("everything, bf16", [](Case& one) {
    one.lora.reset();
    one.dtype = at::kBFloat16;
  });
  add("everything, bf16 over fp32, tied", [](Case& one) {
    one.glm = small_glm(true);
    one.lora.reset();
    one.amp_dtype = at::kBFloat16;
  });
  add("everything, bf16, recompute full", [](Case& one) {
    one.lora.reset();
    one.dtype = at::kBFloat16;
    one.recompute = nn::Recompute::kFull;
  });
  add("packed rows", [&](Case& one) { one.packed = lengths; });
  add("packed rows, bf16, all linear", [&](Case& one) {
    one.lora = all_linear();
    one.dtype = at::kBFloat16;
    one.packed = lengths;
  });
  add("plain operations", [](Case& one) { one.disabled = nn::FastPaths::names(); });
  add("few bits bf16", [](Case& one) {
    one.quantization = QuantizationScheme{QuantizedType::kNf4, 64, true};
    one.dtype = at::kBFloat16;
  });
  add("prefix", [&](Case& one) { one.method = v2; });
  add("prefix, bf16", [&](Case& one) {
    one.method = v2;
    one.dtype = at::kBFloat16;
  });
  add("prefix, recompute full", [&](Case& one) {
    one.method = v2;
    one.recompute = nn::Recompute::kFull;
  });
  add("prefix, packed rows", [&](Case& one) {
    one.method = v2;
    one.packed = lengths;
  });
  add("prompt", [](Case& one) { one.method = PromptOptions{.num_virtual_tokens = 20}; });
  add("AdaLoRA, bf16", [](Case& one) {
    one.method = AdaLoraOptions{.total_steps = 100, .targets = "all-linear"};
    one.dtype = at::kBFloat16;
  });
  return all;
}

std::vector<std::pair<std::string, Case>> cases() {
  std::vector<std::pair<std::string, Case>> all;
  const auto add = [&](const std::string& name, auto change) {
    Case one;
    change(one);
    all.emplace_back(name, one);
  };
  add("fp32", [](Case&) {});
  add("bf16", [](Case& one) { one.dtype = at::kBFloat16; });
  add("bf16 over fp32", [](Case& one) { one.amp_dtype = at::kBFloat16; });
  add("grouped heads, tied", [](Case& one) {
    one.dtype = at::kBFloat16;
    one.config = small_config(2, true);
  });
  add("all linear", [](Case& one) { one.lora = all_linear(); });
  add("all linear bf16, long rows", [](Case& one) {
    one.lora = all_linear();
    one.dtype = at::kBFloat16;
    one.micro_batch = 2;
    one.row_tokens = 256;
  });
  add("dropout", [](Case& one) { one.lora->dropout = 0.1; });
  add("recompute full", [](Case& one) { one.recompute = nn::Recompute::kFull; });
  add("recompute selective", [](Case& one) { one.recompute = nn::Recompute::kSelective; });
  add("recompute full bf16", [](Case& one) {
    one.dtype = at::kBFloat16;
    one.recompute = nn::Recompute::kFull;
  });
  add("recompute selective bf16, all linear", [](Case& one) {
    one.lora = all_linear();
    one.dtype = at::kBFloat16;
    one.recompute = nn::Recompute::kSelective;
  });
  add("all linear, rank 64, short rows", [](Case& one) {
    one.lora = all_linear();
    one.lora->rank = 64;
    one.micro_batch = 4;
    one.row_tokens = 32;
  });
  add("dropout, all linear bf16 over fp32", [](Case& one) {
    one.lora = all_linear();
    one.lora->dropout = 0.1;
    one.amp_dtype = at::kBFloat16;
  });
  add("last layer alone", [](Case& one) { one.lora->layers_to_transform = {2}; });
  add("everything", [](Case& one) { one.lora.reset(); });
  add("everything, accumulated", [](Case& one) {
    one.lora.reset();
    one.grad_accum = 3;
  });
  add("everything, bf16 over fp32", [](Case& one) {
    one.lora.reset();
    one.amp_dtype = at::kBFloat16;
  });
  add("everything, bf16", [](Case& one) {
    one.lora.reset();
    one.dtype = at::kBFloat16;
  });
  add("everything, bf16, a wide vocabulary in several chunks", [](Case& one) {
    one.lora.reset();
    one.dtype = at::kBFloat16;
    one.config.vocab_size = 60000;
  });
  add("everything, a wide vocabulary, tied", [](Case& one) {
    one.lora.reset();
    one.config = small_config(4, true);
    one.config.vocab_size = 60000;
    one.recompute = nn::Recompute::kFull;
  });
  add("everything, tied, by momentum", [](Case& one) {
    one.lora.reset();
    one.config = small_config(4, true);
    one.optimizer.type = "sgd";
    one.optimizer.momentum = 0.9;
  });
  add("head saved whole", [](Case& one) { one.lora->modules_to_save = {"lm_head"}; });
  add("adapted head", [](Case& one) { one.lora->targets = std::vector<std::string>{"q_proj", "lm_head"}; });
  add("packed rows", [](Case& one) { one.packed = {60, 33, 17, 64, 21, 50, 64, 40, 60, 12, 38}; });
  add("packed rows, bf16, all linear", [](Case& one) {
    one.lora = all_linear();
    one.dtype = at::kBFloat16;
    one.packed = {200, 120, 64, 50, 190};
  });
  add("packed rows, plain operations", [](Case& one) {
    one.packed = {60, 33, 17, 64, 21, 50, 64, 40, 60, 12, 38};
    one.disabled = nn::FastPaths::names();
  });
  add("plain operations", [](Case& one) { one.disabled = nn::FastPaths::names(); });
  add("few bits", [](Case& one) { one.quantization = QuantizationScheme{}; });
  add("few bits bf16", [](Case& one) {
    one.quantization = QuantizationScheme{QuantizedType::kNf4, 64, true};
    one.dtype = at::kBFloat16;
  });
  add("8 bits, bf16 over fp32, all linear", [](Case& one) {
    one.quantization = QuantizationScheme{.type = QuantizedType::kInt8};
    one.amp_dtype = at::kBFloat16;
    one.lora = all_linear();
  });
  add("few bits bf16, recompute full, short rows", [](Case& one) {
    one.quantization = QuantizationScheme{};
    one.dtype = at::kBFloat16;
    one.recompute = nn::Recompute::kFull;
    one.micro_batch = 2;
  });
  add("few bits, one weight trained", [](Case& one) {
    one.quantization = QuantizationScheme{};
    one.rules.train = {"layers.1.mlp.up_proj.weight"};
  });
  add("few bits, plain operations", [](Case& one) {
    one.quantization = QuantizationScheme{};
    one.disabled = nn::FastPaths::names();
  });
  const auto add_method = [&](const std::string& name, const MethodOptions& method, auto change) {
    add(name, [&](Case& one) {
      one.method = method;
      change(one);
    });
  };
  const auto plain = [](Case&) {};
  const auto in_half = [](Case& one) { one.dtype = at::kBFloat16; };
  const auto in_full_recomputation = [](Case& one) { one.recompute = nn::Recompute::kFull; };
  LoraOptions dora = all_linear();
  dora.dora = true;
  add_method("DoRA", dora, plain);
  add_method("DoRA, bf16", dora, in_half);
  add_method("DoRA, bf16 over fp32", dora, [](Case& one) { one.amp_dtype = at::kBFloat16; });
  add_method("DoRA, recompute full", dora, in_full_recomputation);
  add_method("(IA)^3", Ia3Options{}, plain);
  add_method("(IA)^3, bf16", Ia3Options{}, in_half);
  AdaLoraOptions adalora{.total_steps = 100, .targets = "all-linear"};
  add_method("AdaLoRA", adalora, plain);
  add_method("AdaLoRA, bf16", adalora, in_half);
  add_method("prefix", PrefixOptions{.num_virtual_tokens = 20}, plain);
  add_method("prefix, bf16, grouped heads", PrefixOptions{.num_virtual_tokens = 20}, [](Case& one) {
    one.dtype = at::kBFloat16;
    one.config = small_config(2);
  });
  add_method("prefix, recompute full", PrefixOptions{.num_virtual_tokens = 20}, in_full_recomputation);
  add_method("prefix with projection", PrefixOptions{.num_virtual_tokens = 20, .projection = true, .encoder_hidden_size = 64},
             plain);
  add_method("prompt", PromptOptions{.num_virtual_tokens = 20}, plain);
  add_method("prompt, bf16", PromptOptions{.num_virtual_tokens = 20}, in_half);
  add_method("prompt, recompute selective", PromptOptions{.num_virtual_tokens = 20},
             [](Case& one) { one.recompute = nn::Recompute::kSelective; });
  add_method("prompt, packed rows", PromptOptions{.num_virtual_tokens = 20},
             [](Case& one) { one.packed = {60, 33, 17, 64, 21, 50, 64, 40, 60, 12, 38}; });
  add_method("P-tuning", PTuningOptions{.num_virtual_tokens = 20}, plain);
  add_method("P-tuning, LSTM", PTuningOptions{.num_virtual_tokens = 20, .encoder = "LSTM", .encoder_hidden_size = 32}, plain);
  for (const std::string kind : {"houlsby", "pfeiffer", "parallel"}) {
    add_method(kind, bottleneck_preset(kind), plain);
    add_method(kind + ", bf16", bottleneck_preset(kind), in_half);
  }
  add_method("houlsby, bf16 over fp32", bottleneck_preset("houlsby"), [](Case& one) { one.amp_dtype = at::kBFloat16; });
  for (auto& glm : glm_cases()) all.push_back(std::move(glm));
  return all;
}

uint64_t bytes_of(const at::Tensor& tensor) { return tensor.nbytes(); }

}  // namespace

TEST_CASE("parameters, gradients and optimizer state are counted as the real ones are") {
  Case lora{.dtype = at::kBFloat16};
  lora.lora->rank_pattern = {{"layers.0.self_attn.q_proj", 3}};
  lora.lora->modules_to_save = {"lm_head"};
  lora.rules.train = {"layers.1.mlp.up_proj"};
  Case bits{.dtype = at::kBFloat16, .quantization = QuantizationScheme{QuantizedType::kNf4, 64, true}};
  Case sgd = full_case();
  sgd.optimizer.type = "sgd";
  sgd.optimizer.momentum = 0.9;
  sgd.rules.freeze = {"embed_tokens"};
  Case rounded = full_case();
  rounded.dtype = at::kBFloat16;
  rounded.optimizer.master_weights = false;
  Case tied = full_case();
  tied.config = small_config(2, true);
  Case prompt{.method = PTuningOptions{.num_virtual_tokens = 3}}, bottleneck{.method = bottleneck_preset("houlsby")};
  for (const Case& one : {lora, bits, sgd, rounded, tied, prompt, bottleneck, full_case()}) {
    const Made real = make(one, at::kCPU);
    Trainer trainer(real.model, real.adapters, trainer_options(one));
    const auto made = make(one, at::kMeta);
    const ParameterMemory planned = parameter_memory(*made.model, made.adapters, one.optimizer);

    uint64_t weights = 0, adapters = 0, gradients = 0, state = 0;
    std::set<const void*> seen;
    std::set<std::string> adapted;
    if (real.adapters) {
      for (const auto& [name, parameter] : real.adapters.named_parameters()) adapted.insert(name);
      for (const auto& saved : real.adapters.saved_parameters()) weights += bytes_of(saved.other);
    }
    std::map<const void*, uint64_t> in_few_bits;
    for (const auto& module : real.model->modules(/*include_self=*/false)) {
      const auto* linear = module->as<nn::LinearImpl>();
      if (linear != nullptr && linear->weight_is_quantized())
        in_few_bits[linear->weight.data_ptr()] = linear->quantized_weight()->bytes();
    }
    CHECK(in_few_bits.size() == (one.quantization ? 21 : 0));
    for (const auto& entry : real.model->named_parameters()) {
      if (const auto bytes = in_few_bits.find(entry.value().data_ptr()); bytes != in_few_bits.end()) {
        weights += bytes->second;
        continue;
      }
      if (!seen.insert(entry.value().data_ptr()).second) continue;
      (adapted.contains(entry.key()) ? adapters : weights) += bytes_of(entry.value());
    }
    for (const auto& [name, parameter] : trainer.state().optimizer->parameters()) gradients += bytes_of(parameter);
    for (const auto& [name, tensor] : trainer.state().optimizer->state()) state += bytes_of(tensor);
    CHECK(planned.weights_bytes == weights);
    CHECK(planned.adapters_bytes == adapters);
    CHECK(planned.gradients_bytes == gradients);
    CHECK(planned.optimizer_bytes == state);
    int64_t trained = 0;
    for (const auto& [name, parameter] : trainer.state().optimizer->parameters()) trained += parameter.numel();
    CHECK(planned.trainable == trained);
  }
}

TEST_CASE("the rehearsal has as many bytes of tensors as two real steps") {
  for (const auto& [name, one] : cases()) {
    const double planned = static_cast<double>(plan_memory(inputs_of(one)).tensors_bytes), measured = measured_bytes(one);
    CAPTURE(name, planned, measured);
    // oneDNN chooses, by the processor, how much memory products in half precision work in: those with transposed gradients most.
    const bool in_half = one.dtype == at::kBFloat16 || one.amp_dtype == at::kBFloat16;
    // Length classes are planned as one class.
    const bool by_class = !one.packed.empty() && !one.disabled.empty();
    // The plan knows no row, and so not how much of it is a ChatGLM's context, which plain operations attend to by itself.
    const bool by_context = one.glm && !one.disabled.empty();
    // Of methods beside LoRA what a pass makes for a moment is planned roughly.
    CHECK(std::abs(planned / measured - 1) < (by_class ? 0.2 : one.method || by_context ? 0.1 : in_half ? 0.05 : 0.035));
  }
}

TEST_CASE("a larger micro-batch never takes less, and the largest that fits is the largest") {
  for (const auto& [name, one] : cases()) {
    CAPTURE(name);
    MemoryInputs inputs = inputs_of(one);
    uint64_t before = 0;
    for (const int64_t rows : {1, 2, 3, 8, 50, 51, 400}) {
      inputs.micro_batch = rows;
      const uint64_t peak = plan_memory(inputs).peak_bytes;
      CHECK(peak >= before);
      before = peak;
    }
    inputs.micro_batch = 37;
    const uint64_t memory = plan_memory(inputs).peak_bytes;
    const int64_t largest = largest_micro_batch(inputs, memory);
    CHECK(largest >= 37);
    inputs.micro_batch = largest;
    CHECK(plan_memory(inputs).peak_bytes <= memory);
    inputs.micro_batch = largest + 1;
    CHECK(plan_memory(inputs).peak_bytes > memory);
    CHECK(largest_micro_batch(inputs, 1 << 20) == 0);
  }
}

TEST_CASE("recomputation saves activations, packing and streaming change the weights alone") {
  Case one{.dtype = at::kBFloat16};
  one.micro_batch = 64;
  MemoryInputs inputs = inputs_of(one);
  inputs.packing_pays = true;
  const MemoryPlan none = plan_memory(inputs);
  inputs.recompute = nn::Recompute::kSelective;
  const MemoryPlan selective = plan_memory(inputs);
  inputs.recompute = nn::Recompute::kFull;
  const MemoryPlan full = plan_memory(inputs);
  CHECK(full.activations_bytes < selective.activations_bytes);
  CHECK(selective.activations_bytes < none.activations_bytes);

  inputs.recompute = nn::Recompute::kNone;
  // Both forms of every product but the first layer's transposed q, k, v, which nobody asks for; the plain weight is gone.
  const auto& config = one.config;
  const int64_t qkv = 3 * config.hidden_size * config.hidden_size;
  const int64_t layer = qkv + config.hidden_size * (config.hidden_size + 3 * config.intermediate_size);
  const int64_t products = config.num_hidden_layers * layer + config.vocab_size * config.hidden_size;
  CHECK(none.packed_bytes == static_cast<uint64_t>(2 * (products - qkv)));
  inputs.fast_paths.release_plain = false;
  CHECK(plan_memory(inputs).packed_bytes == static_cast<uint64_t>(2 * (2 * products - qkv)));
  inputs.packing_pays = false;
  CHECK(plan_memory(inputs).packed_bytes == 0);
  const uint64_t held = plan_memory(inputs).tensors_bytes;
  inputs.streams_layers = true;
  CHECK(plan_memory(inputs).tensors_bytes < held);
}

TEST_CASE("what is no tensor is added, and what is there for a moment counts") {
  MemoryInputs inputs = inputs_of({});
  const MemoryPlan plan = plan_memory(inputs);
  CHECK(plan.peak_bytes == plan.program_bytes + plan.tensors_bytes + plan.kept_bytes);
  inputs.data_bytes = 123'456;
  CHECK(plan_memory(inputs).peak_bytes == plan.peak_bytes + 123'456);
  inputs.loading_bytes = 10 * plan.tensors_bytes;
  CHECK(plan_memory(inputs).tensors_bytes == inputs.parameters.weights_bytes + inputs.loading_bytes);

  // Of three streamed layers two are there at a time.
  inputs = inputs_of({});
  inputs.streams_layers = true;
  const auto config = small_config();
  const int64_t layer = 4 * config.hidden_size * (4 * config.hidden_size + 3 * config.intermediate_size);
  CHECK(plan_memory(inputs).tensors_bytes == plan.tensors_bytes - static_cast<uint64_t>(layer));

  // Packed weights are unpacked again to be saved.
  inputs = inputs_of({.dtype = at::kBFloat16});
  inputs.packing_pays = true;
  inputs.row_tokens = inputs.micro_batch = 1;
  const uint64_t unsaved = plan_memory(inputs).tensors_bytes;
  inputs.saves_base = true;
  CHECK(plan_memory(inputs).tensors_bytes > unsaved);
}

namespace {

/// Of one decoder layer of a configuration.
int64_t layer_numbers(const llama::LlamaConfig& config) {
  const int64_t kv_width = config.num_key_value_heads * config.head_dim;
  return config.hidden_size * (2 * config.hidden_size + 2 * kv_width + 3 * config.intermediate_size);
}

double kept_bytes(const MemoryInputs& inputs) { return static_cast<double>(plan_memory(inputs).kept_bytes); }

MemoryInputs with_rows(MemoryInputs inputs, int64_t rows) {
  inputs.micro_batch = rows;
  return inputs;
}

/// What `rows` more rows add to what the heap keeps when all tensors of a layer are large.
double kept_by_rows(const MemoryInputs& inputs, int64_t rows) {
  return kept_bytes(with_rows(inputs, 400 + rows)) - kept_bytes(with_rows(inputs, 400));
}

bool agree(double a, double b) { return std::abs(a - b) <= 1e-6 * std::abs(b) + 4; }

}  // namespace

TEST_CASE("packing leaves the holes of plain weights, but where transposes come afterwards") {
  const auto config = small_config();
  const int64_t layers = config.num_hidden_layers;
  MemoryInputs inputs = inputs_of({.dtype = at::kBFloat16, .micro_batch = 1});
  inputs.packing_pays = false;
  const double nothing = kept_bytes(inputs);
  inputs.packing_pays = true;
  CHECK(agree(kept_bytes(inputs) - nothing, static_cast<double>((layers - 1) * 2 * layer_numbers(config))));

  // Streamed layers leave nothing, and make no transposes that would find the head's hole.
  MemoryInputs streamed = inputs;
  streamed.streams_layers = true;
  CHECK(agree(kept_bytes(streamed) - nothing, static_cast<double>(2 * config.vocab_size * config.hidden_size)));

  // Weights that stay leave no hole; those converted on the way to their packed form leave some of the copies.
  inputs = inputs_of({.amp_dtype = at::kBFloat16, .micro_batch = 1});
  inputs.packing_pays = true;
  const auto copies = static_cast<double>((layers - 1) * 2 * layer_numbers(config));
  CHECK(kept_bytes(inputs) - nothing > 0.3 * copies);
  CHECK(kept_bytes(inputs) - nothing < 0.7 * copies);

  // A GPU's allocator keeps blocks by size.
  inputs.device = c10::kCUDA;
  CHECK(plan_memory(inputs).kept_bytes == 0);
}

TEST_CASE("large tensors of all layers but the last leave holes, less the small ones that find room there") {
  const auto config = small_config();
  const int64_t D = config.hidden_size, inner = config.intermediate_size;
  // Norm, normed and result twice, sums that stay, q, k, v, what attention sees, gate and up, their product: numbers per token.
  const int64_t sums = 2, states = 4, wide = 3 * D + D + 3 * inner;
  const auto fp32 = inputs_of({});
  const double all = static_cast<double>((sums + states) * D + wide);
  const double share = kept_by_rows(fp32, 100) / (2.0 * 100 * 64 * 4 * all);
  CHECK(share > 0.4);
  CHECK(share < 0.8);

  // Numbers of the stream stay fp32 under mixed precision.
  const auto mixed = inputs_of({.amp_dtype = at::kBFloat16});
  const double mixed_bytes = static_cast<double>(4 * sums * D + 2 * (states * D + wide));
  CHECK(agree(kept_by_rows(mixed, 100), share * 2 * 100 * 64 * mixed_bytes));

  // Gradients of earlier micro-batches lie between them.
  auto accumulated = fp32;
  accumulated.grad_accum = 2;
  CHECK(kept_by_rows(accumulated, 100) > 1.2 * kept_by_rows(fp32, 100));
  CHECK(kept_by_rows(accumulated, 100) < 2.0 * 100 * 64 * 4 * all);

  // Recomputed tensors find their room again, but for those of one layer each way, unless something was put between them.
  auto full = inputs_of({.recompute = nn::Recompute::kFull});
  CHECK(agree(kept_by_rows(full, 100), share * 2 * 100 * 64 * 4 * all));
  auto selective = inputs_of({.recompute = nn::Recompute::kSelective});
  CHECK(agree(kept_by_rows(selective, 100), share * 2 * 100 * 64 * 4 * all));
  // Two of three layers last, and two are recomputed: with nine layers it shows which do what.
  for (MemoryInputs* inputs : {&full, &selective}) inputs->shapes.layers.resize(9, inputs->shapes.layers.front());
  const double state = static_cast<double>(D);
  const double of_full = 8 * 2 * state + 2 * (all - 2 * state), of_selective = 8 * 8 * state + 2 * (all - 8 * state);
  CHECK(agree(kept_by_rows(full, 100), share * 100 * 64 * 4 * of_full));
  CHECK(agree(kept_by_rows(selective, 100), share * 100 * 64 * 4 * of_selective));
  const double plain = kept_by_rows(full, 100);
  full.grad_accum = 2;
  CHECK(kept_by_rows(full, 100) > 1.5 * plain);
  auto packed = inputs_of({.dtype = at::kBFloat16, .recompute = nn::Recompute::kFull});
  packed.shapes.layers.resize(9, packed.shapes.layers.front());
  packed.packing_pays = true;
  CHECK(kept_by_rows(packed, 100) > 1.2 * share * 100 * 64 * 2 * of_full);
  CHECK(kept_by_rows(packed, 100) < share * 100 * 64 * 2 * 8 * all);

  // 100 rows of 64 tokens: q, k, v (9.4 MiB), gate and up (17), their product (8.6) and states (3.1) are large in fp32. A
  // row of 64 tokens has nothing large. At 40 rows (2560 tokens) states (1.25 MiB) are small: 6 D and what attention sees.
  CHECK(agree(kept_bytes(with_rows(fp32, 1)), kept_bytes(with_rows(fp32, 2))));
  const double holes = static_cast<double>(3 * D + 3 * inner - 7 * D);
  CHECK(agree(kept_bytes(with_rows(fp32, 40)) - kept_bytes(with_rows(fp32, 1)), share * 2 * 40 * 64 * 4 * holes));
}

TEST_CASE("gradients and adapters that drop inputs leave holes") {
  MemoryInputs inputs = inputs_of({.lora = std::nullopt, .micro_batch = 1});
  const auto gradients = static_cast<double>(inputs.parameters.gradients_bytes);
  CHECK(kept_bytes(inputs) > 0.25 * gradients);
  CHECK(kept_bytes(inputs) < 0.6 * gradients);
  inputs.grad_accum = 2;
  CHECK(agree(kept_bytes(inputs), gradients));

  // Beside a product: mask and dropped input, the update and its sum, for q, k, v and for gate, up the outputs once more.
  const auto config = small_config();
  const int64_t D = config.hidden_size, inner = config.intermediate_size;
  Case one{.lora = all_linear()};
  const double without = kept_by_rows(inputs_of(one), 100);
  one.lora->dropout = 0.1;
  const double more = kept_by_rows(inputs_of(one), 100) - without;
  const double numbers = static_cast<double>(2 * 4 * 2 * D + 3 * 2 * (D + inner) + 3 * D + 2 * inner);
  const double share = more / (3.0 * 100 * 64 * 4 * numbers);
  CHECK(share > 0.1);
  CHECK(share < 0.4);
  one.lora->targets = std::vector<std::string>{"down_proj"};
  one.lora->dropout = 0;
  const double without_down = kept_by_rows(inputs_of(one), 100);
  one.lora->dropout = 0.1;
  CHECK(agree(kept_by_rows(inputs_of(one), 100) - without_down, share * 3 * 100 * 64 * 4 * 2 * static_cast<double>(D + inner)));
}

TEST_CASE("while the head is transposed four forms of it exist beside the logits") {
  Case one{.dtype = at::kBFloat16};
  one.config.vocab_size = 60000;
  one.micro_batch = one.row_tokens = 1;
  MemoryInputs inputs = inputs_of(one);
  inputs.packing_pays = true;
  // Packed (in the plain one's place), made plain, transposed, packed again; the logits of the fewest rows that are multiplied.
  const int64_t head = 2 * one.config.hidden_size * one.config.vocab_size, logits = 2 * 64 * one.config.vocab_size;
  const auto beyond = static_cast<int64_t>(plan_memory(inputs).tensors_bytes - inputs.parameters.weights_bytes);
  CHECK(beyond >= 3 * head + logits);
  CHECK(beyond < 3 * head + logits + head / 10);  // adapters with their optimizer, and the one token
}

TEST_CASE("gradients of an earlier micro-batch stay while further ones are made and added") {
  Case one = full_case();
  one.config.vocab_size = 60000;
  one.micro_batch = one.row_tokens = 1;
  const auto tensors = [&](int64_t grad_accum) {
    one.grad_accum = grad_accum;
    return static_cast<double>(plan_memory(inputs_of(one)).tensors_bytes);
  };
  // One micro-batch: the head's gradient as it was summed up and times the loss'. Two: beside those of head and embedding.
  const double table = 4.0 * static_cast<double>(one.config.hidden_size * one.config.vocab_size);
  CHECK(std::abs(tensors(2) - tensors(1) - 2 * table) < table / 10);
}

TEST_CASE("a trained head's gradient of several chunks is fp32, twice, before it has its own type") {
  Case one = full_case();
  one.dtype = at::kBFloat16;
  one.config.num_hidden_layers = 1;
  one.config.hidden_size = 4096;
  one.config.vocab_size = 32768;  // chunks of 512 rows
  one.micro_batch = 9;
  const MemoryInputs inputs = inputs_of(one);
  const auto held = inputs.parameters.weights_bytes + inputs.parameters.optimizer_bytes;
  const auto head = static_cast<uint64_t>(one.config.hidden_size * one.config.vocab_size);
  CHECK(plan_memory(inputs).tensors_bytes >= held + (4 + 4 + 2) * head);
}

TEST_CASE("products in fp32 keep memory of their own, by the largest weight") {
  const auto program = [](at::ScalarType dtype, int64_t vocabulary) {
    Case one{.dtype = dtype};
    one.config.vocab_size = vocabulary;
    return static_cast<int64_t>(plan_memory(inputs_of(one)).program_bytes);
  };
  const auto config = small_config();
  const int64_t head = 4 * config.hidden_size * config.vocab_size, up = 4 * config.hidden_size * config.intermediate_size;
  CHECK(program(at::kFloat, config.vocab_size) - program(at::kBFloat16, config.vocab_size) == 3 * head);
  CHECK(program(at::kFloat, 32) - program(at::kBFloat16, 32) == 3 * up);
  CHECK(program(at::kFloat, 200'000) == program(at::kFloat, 400'000));  // up to a limit
}

TEST_CASE("streamed layers are packed for one product, and transposed for the way back") {
  Case one{.dtype = at::kBFloat16};
  one.config.vocab_size = 32;  // so that the head, which stays, is no peak
  one.micro_batch = one.row_tokens = 1;
  MemoryInputs inputs = inputs_of(one);
  inputs.streams_layers = true;
  inputs.packing_pays = false;
  const uint64_t plain = plan_memory(inputs).tensors_bytes;
  inputs.packing_pays = true;
  // Gate and up are largest: transposed from where they lie side by side, and packed. The head's two forms replace the plain one.
  const int64_t gate_up = 2 * 2 * one.config.hidden_size * one.config.intermediate_size;
  const int64_t head = 2 * one.config.hidden_size * one.config.vocab_size;
  const auto more = static_cast<int64_t>(plan_memory(inputs).tensors_bytes - plain);
  CHECK(more <= 2 * gate_up + head);
  CHECK(more > 2 * gate_up + head - gate_up / 4);  // the peak without them is that of the loss, which is a little higher
}

TEST_CASE("attention that takes packed rows as they are does not ask how classes would lay them out") {
  Case one{.dtype = at::kBFloat16};
  one.packed = {200, 120, 64, 50, 190};
  const auto peak = [&](c10::DeviceType device, double places, bool plain) {
    one.disabled = plain ? nn::FastPaths::names() : std::vector<std::string>{};
    MemoryInputs inputs = inputs_of(one);
    inputs.device = device;
    inputs.places_per_token = places;
    return plan_memory(inputs).tensors_bytes;
  };
  CHECK(peak(c10::kCPU, 1, false) == peak(c10::kCPU, 2, false));
  CHECK(peak(c10::kCPU, 1, true) < peak(c10::kCPU, 2, true));
  CHECK(peak(c10::kCUDA, 1, false) == peak(c10::kCUDA, 2, false));
}

}  // namespace lora::train
