// All commands of lora with a model, rows and a metric of one's own, which own_model.yaml names.
#include <lora/cli/program.h>
#include <lora/core/file.h>
#include <lora/data/format_registry.h>
#include <lora/eval/metric_registry.h>
#include <lora/models/registry.h>
#include <lora/nn/embedding.h>
#include <torch/nn/modules/container/modulelist.h>

using namespace lora;
constexpr int64_t kVocabulary = 2000, kWidth = 64, kLayers = 2, kEnd = 2;
/// Predicts a token from the one before it.
struct PairModel : nn::CausalLMImpl {
  explicit PairModel(const nn::ParameterOptions& parameters)
      : embed(register_module("embed", nn::Embedding(nn::EmbeddingOptions{kVocabulary, kWidth, parameters}))),
        layers(register_module("layers", torch::nn::ModuleList())),
        output(register_module("output", nn::Linear(nn::LinearOptions{kWidth, kVocabulary, false, parameters}))) {
    for (int64_t i = 0; i < kLayers; ++i) layers->push_back(nn::Linear(nn::LinearOptions{kWidth, kWidth, false, parameters}));
  }
  at::Tensor hidden(const Batch& batch, nn::KvCache* cache) override {
    at::Tensor x = embed->forward(batch.input_ids_BS);
    for (const auto& layer : *layers) x = x + at::tanh(layer->as<nn::LinearImpl>()->forward(x));
    if (cache != nullptr) cache->advance(batch.input_ids_BS.size(1));
    return x;
  }
  nn::Linear head() override { return output; }
  int64_t vocab_size() const override { return kVocabulary; }
  int64_t num_layers() const override { return kLayers; }
  int64_t max_positions() const override { return 512; }
  std::vector<int64_t> end_ids() const override { return {kEnd}; }
  nn::Embedding embed;
  torch::nn::ModuleList layers;
  nn::Linear output;
};
nn::ModelLayout layout_of(const torch::nn::Module& model) {
  nn::ModelLayout layout;
  for (const auto& weight : model.named_parameters()) layout.weights.push_back({weight.key(), weight.value().sizes().vec()});
  return layout;
}
std::shared_ptr<nn::CausalLMImpl> load(const Path& directory, const nn::LoadOptions& options) {
  const nn::ModelWeights weights(directory, layout_of(PairModel({.device = at::kMeta})), options);
  const auto model = std::make_shared<PairModel>(weights.parameters());
  weights.fill(*model, {model->layers, "layers"});
  return model;
}
void save(nn::CausalLMImpl& model, const Path& directory, const nn::SaveOptions& options) {
  nn::save_weights(model, {dynamic_cast<PairModel&>(model).layers, "layers"}, layout_of(model), directory, options);
  write_file_atomically(directory / "config.json", R"({"model_type": "pairs"})");
  if (options.copy_tokenizer_from) nn::copy_tokenizer_files(*options.copy_tokenizer_from, directory);
}
std::vector<double> same_letter(std::string_view a, std::string_view b) { return {a.substr(0, 1) == b.substr(0, 1) ? 1.0 : 0.0}; }
int main(int argc, char** argv) {
  const auto make = [](const models::FreshModel& fresh) { return std::make_shared<PairModel>(fresh.parameters); };
  const auto read = [](const data::Row& row, auto*) { return data::TextPair{row.text("q") + "\n", row.text("a")}; };
  models::register_model({.name = "pairs", .load = load, .make = make, .save = save});
  data::register_data_format({.name = "qa", .version = "1", .read = read});
  eval::register_metric("letter", [](const eval::MetricOptions&) { return eval::mean_of_rows({"letter"}, same_letter); });
  return cli::run_program(argc, argv);
}
