// LoftQ: the factors and weights of Hugging Face PEFT (tests/reference/loftq), and what holds for any scheme and scale.
#include "lora/adapters/loftq.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "lora/adapters/adapter_io.h"
#include "lora/adapters/inject.h"
#include "lora/core/error.h"
#include "lora/io/model_files.h"
#include "parity/peft_fixture.h"
#include "support.h"

using namespace lora;
using namespace lora::testing::peft;
using lora::testing::message_of;

namespace {

constexpr QuantizationScheme kNf4{QuantizedType::kNf4, 64, false}, kDouble{QuantizedType::kNf4, 64, true};

std::shared_ptr<llama::LlamaForCausalLMImpl> base_in(const QuantizationScheme& scheme, at::ScalarType dtype = at::kFloat) {
  return llama::load(reference() / "base", {.dtype = dtype, .quantization = scheme});
}

at::Tensor plain_weight(const std::string& path) { return io::ModelFiles(reference() / "base").read(path + ".weight"); }

LoraOptions loftq_options(int64_t rank = 4, double alpha = 4) {
  LoraOptions options{.rank = rank, .alpha = alpha, .init = "loftq"};
  options.targets = "all-linear";
  return options;
}

const AdapterSet::Slot& slot_at(const AdapterSet& adapters, const std::string& path) {
  for (const auto& slot : adapters.slots()) {
    if (slot.path == path) return slot;
  }
  FAIL("no slot at " << path);
  return adapters.slots().front();
}

double frobenius(const at::Tensor& tensor) { return at::linalg_vector_norm(tensor.to(at::kDouble)).item<double>(); }

}  // namespace

TEST_CASE("LoftQ's factors and weights are PEFT's where its scale is 1", "[parity]") {
  const torch::NoGradGuard no_grad;
  const auto expected = io::load_safetensors(testing::reference_folder() / "loftq/expected.safetensors");
  for (const int64_t iterations : {1, 2, 5}) {
    auto model = base_in(kNf4);
    const auto adapters = inject(*model, loftq_options());
    const auto report = initialize_loftq(adapters, plain_weight, iterations);
    CHECK(report.layers == 14);
    CHECK(report.requantized == (iterations == 1 ? 0 : 14));
    for (const char* path : {"model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"}) {
      INFO(path << ", " << iterations);
      const auto named = [&](const char* what) { return expected.at(fmt::format("{}.{}.{}", path, iterations, what)); };
      const auto& slot = slot_at(adapters, path);
      const auto& lora = dynamic_cast<const LoraLinear&>(*slot.adapter);
      const at::Tensor q = slot.linear->weight_value();
      // A number that lies between two codes may fall to the other side once the factors differ in their last bits.
      CHECK((q != named("q")).sum().item<int64_t>() <= (iterations == 1 ? 0 : 2));
      CHECK(largest_difference(lora.lora_B.mm(lora.lora_A), named("b").mm(named("a"))) < 1e-4);
      // Both hold the root of the singular values.
      CHECK(std::abs(frobenius(lora.lora_A) - frobenius(named("a"))) < 1e-3);
      CHECK(std::abs(frobenius(lora.lora_B) - frobenius(named("b"))) < 1e-3);
    }
  }
}

TEST_CASE("LoftQ comes nearer to the weight for any scheme, type and scale, and more iterations do not lose it", "[parity]") {
  const torch::NoGradGuard no_grad;
  const auto scheme =
      GENERATE(values<QuantizationScheme>({kNf4, kDouble, {QuantizedType::kFp4, 128, false}, {.type = QuantizedType::kInt8}}));
  const at::ScalarType dtype = GENERATE(at::kFloat, at::kBFloat16);
  const auto [alpha, rank_stabilized] = GENERATE(table<double, bool>({{4.0, false}, {16.0, false}, {10.0, true}}));
  double last = 0;
  for (const int64_t iterations : {1, 2, 4}) {
    auto model = base_in(scheme, dtype);
    LoraOptions options = loftq_options(4, alpha);
    options.rank_stabilized = rank_stabilized;
    const auto adapters = inject(*model, options);
    const auto report = initialize_loftq(adapters, plain_weight, iterations);
    double before = 0, after = 0;
    auto plainly = base_in(scheme, dtype);
    const auto untouched = inject(*plainly, options);
    for (size_t i = 0; i < adapters.slots().size(); ++i) {
      const auto& slot = adapters.slots()[i];
      const at::Tensor weight = plain_weight(slot.path);
      before += std::pow(frobenius(weight - untouched.slots()[i].linear->quantized_weight()->dequantize(at::kFloat)), 2);
      after +=
          std::pow(frobenius(weight - slot.linear->quantized_weight()->dequantize(at::kFloat) - slot.adapter->weight_delta()), 2);
    }
    CHECK(std::abs(report.error_before - std::sqrt(before)) < 1e-3 * report.error_before);
    CHECK(std::abs(report.error_after - std::sqrt(after)) < 1e-3 * report.error_before);
    CHECK(report.error_after < report.error_before);
    CHECK((last == 0 || report.error_after <= last));
    last = report.error_after;
    CHECK(std::get<LoraOptions>(adapters.options()).loftq == LoftqOptions{bits_of(scheme.type), iterations});
  }
}

TEST_CASE("LoftQ's model is nearer to the plain one than the quantised base", "[parity]") {
  const torch::NoGradGuard no_grad;
  const bool dora = GENERATE(false, true);
  const at::Tensor wanted = load_base("base")->forward(fixture_batch());
  auto model = base_in(kDouble);
  const double without = frobenius(model->forward(fixture_batch()) - wanted);
  LoraOptions options = loftq_options(16, 32);
  options.dora = dora;
  const auto adapters = inject(*model, options);
  initialize_loftq(adapters, plain_weight);
  const double with = frobenius(model->forward(fixture_batch()) - wanted);
  CHECK(with < 0.8 * without);
}

TEST_CASE("LoftQ's adapter loads on the same quantised base, or on the one that was saved with it", "[parity]") {
  const torch::NoGradGuard no_grad;
  const int64_t iterations = GENERATE(1, 3);
  auto model = base_in(kDouble);
  const auto adapters = inject(*model, loftq_options(4, 16));
  initialize_loftq(adapters, plain_weight, iterations);
  const testing::ScratchFolder scratch, base;
  save_adapter(adapters, scratch / "adapter");
  llama::SaveOptions quantized;
  quantized.quantized = true;
  llama::save(*model, base.path(), quantized);
  auto other = iterations == 1 ? base_in(kDouble) : llama::load(base.path());
  const auto loaded = load_adapter(*other, scratch / "adapter");
  CHECK(std::get<LoraOptions>(loaded.options()).loftq == LoftqOptions{4, iterations});
  CHECK(largest_difference(other->forward(fixture_batch()), model->forward(fixture_batch())) == 0);
  const auto config = formats::parse_json(read_file(scratch / "adapter/adapter_config.json"), "c");
  CHECK(config.at("init_lora_weights") == true);
  CHECK(config.at("loftq_config") == formats::Json{{"loftq_bits", 4}, {"loftq_iter", iterations}});
}

TEST_CASE("LoftQ of what it cannot do says so", "[parity]") {
  auto plain = load_base("base");
  const auto on_plain = inject(*plain, loftq_options());
  CHECK(message_of<ConfigError>([&] { initialize_loftq(on_plain, plain_weight); }).find("some target must be in few bits") !=
        std::string::npos);
  auto model = base_in(kNf4);
  const auto adapters = inject(*model, loftq_options());
  CHECK_THROWS_AS(initialize_loftq(adapters, plain_weight, 0), ConfigError);
  const auto wrong = [](const std::string&) { return at::zeros({2, 3}); };
  CHECK(message_of<ShapeError>([&] { initialize_loftq(adapters, wrong); }).find("must be [64, 64]; found [2, 3]") !=
        std::string::npos);
  remove_adapter(*model, "default");
  const auto ordinary = inject(*model, LoraOptions{.rank = 4});
  CHECK(message_of<ConfigError>([&] { initialize_loftq(ordinary, plain_weight); }).find("init \"loftq\"") != std::string::npos);
  remove_adapter(*model, "default");
  const auto large = inject(*model, loftq_options(65));
  CHECK(message_of<ConfigError>([&] { initialize_loftq(large, plain_weight); }).find("lower r") != std::string::npos);
}
