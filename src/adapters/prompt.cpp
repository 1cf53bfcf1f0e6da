#include "lora/adapters/prompt.h"

#include <ATen/ATen.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/utils.h>

#include <cmath>

#include "core/check.h"

// Legend: P virtual tokens, D width, L layers, G key/value heads, K head size.
namespace lora {
namespace {

/// What torch.nn.Linear starts with.
at::Tensor uniform(const std::vector<int64_t>& shape, int64_t inputs) {
  const double bound = 1 / std::sqrt(static_cast<double>(inputs));
  return at::empty(shape, at::kFloat).uniform_(-bound, bound);
}

/// Weight and bias under PyTorch's names, in a module of their own.
class Dense : public torch::nn::Module {
 public:
  Dense(int64_t inputs, int64_t outputs) {
    weight = register_parameter("weight", uniform({outputs, inputs}, inputs));
    bias = register_parameter("bias", uniform({outputs}, inputs));
  }
  at::Tensor forward(const at::Tensor& x) const { return at::linear(x, weight, bias); }

  at::Tensor weight, bias;
};

/// Dense layers with an activation between, named by their numbers in a torch.nn.Sequential that holds those as well.
class Network : public torch::nn::Module {
 public:
  using Activation = at::Tensor (*)(const at::Tensor&);
  Network(const std::vector<int64_t>& widths, Activation activation) : activation_(activation) {
    for (size_t i = 0; i + 1 < widths.size(); ++i) {
      layers_.push_back(register_module(std::to_string(2 * i), std::make_shared<Dense>(widths[i], widths[i + 1])));
    }
  }
  at::Tensor forward(at::Tensor x) const {
    for (size_t i = 0; i < layers_.size(); ++i) {
      if (i > 0) x = activation_(x);
      x = layers_[i]->forward(x);
    }
    return x;
  }
  Dense& last() { return *layers_.back(); }

 private:
  Activation activation_;
  std::vector<std::shared_ptr<Dense>> layers_;
};

/// The embedding's place in the tree, so that the parameter's name is PyTorch's.
class Table : public torch::nn::Module {
 public:
  explicit Table(const at::Tensor& values) { weight = register_parameter("weight", values); }
  at::Tensor weight;
};

void require_positive(const char* key, int64_t value) {
  require<ConfigError>(value >= 1, "[adapters.prompt] {} must be at least 1; found {}; use for example 20", key, value);
}

void require_dropout(const char* key, double value) {
  require<ConfigError>(value >= 0 && value < 1, "[adapters.prompt] {} must be in [0, 1); found {}", key, value);
}

class Prefix : public PromptEncoder {
 public:
  Prefix(const PrefixOptions& options, const nn::PromptShape& shape, bool as_stored) : shape_(shape), dropout_(options.dropout) {
    require_positive("num_virtual_tokens", options.num_virtual_tokens);
    require_dropout("prefix dropout", options.dropout);
    const int64_t width = shape.kv_heads * shape.head_dim, all = 2 * shape.layers * width;
    const bool projects = options.projection && !as_stored;
    set_embedding(at::randn({options.num_virtual_tokens, projects ? width : all}, at::kFloat));
    if (projects) {
      const int64_t inner = options.encoder_hidden_size > 0 ? options.encoder_hidden_size : width;
      transform_ = register_module("transform", std::make_shared<Network>(std::vector<int64_t>{width, inner, all}, at::tanh));
    }
    if (!options.init_zero) return;
    const torch::NoGradGuard no_grad;
    if (transform_) {
      transform_->last().weight.zero_();
      transform_->last().bias.zero_();
    } else {
      embedding_weight.zero_();
    }
  }

  int64_t length() const override { return embedding_weight.size(0); }
  bool is_prefix() const override { return true; }
  bool is_plain() const override { return transform_ == nullptr; }

  at::Tensor flat() override {
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    return transform_ ? transform_->forward(embedding_weight) : embedding_weight;
  }

  at::Tensor values() override {
    at::Tensor values = flat();
    if (is_training() && dropout_ > 0) values = at::dropout(values, dropout_, /*train=*/true);
    return values.view({length(), 2 * shape_.layers, shape_.kv_heads, shape_.head_dim}).permute({1, 2, 0, 3});
  }

 private:
  nn::PromptShape shape_;
  double dropout_;
  std::shared_ptr<Network> transform_;
};

class PromptEmbedding : public PromptEncoder {
 public:
  explicit PromptEmbedding(const at::Tensor& values_PD) { set_embedding(values_PD); }

  int64_t length() const override { return embedding_weight.size(0); }
  bool is_prefix() const override { return false; }
  bool is_plain() const override { return true; }
  at::Tensor flat() override { return embedding_weight; }
  at::Tensor values() override { return flat(); }
};

/// A bidirectional LSTM under torch.nn.LSTM's parameter names.
class BidirectionalLstm : public torch::nn::Module {
 public:
  BidirectionalLstm(int64_t inputs, int64_t hidden, int64_t num_layers, double dropout)
      : hidden_(hidden), num_layers_(num_layers), dropout_(dropout) {
    for (int64_t layer = 0; layer < num_layers; ++layer) {
      const int64_t in = layer == 0 ? inputs : 2 * hidden;
      for (const char* direction : {"", "_reverse"}) {
        const auto add = [&](const char* name, const std::vector<int64_t>& shape) {
          weights_.push_back(register_parameter(fmt::format("{}_l{}{}", name, layer, direction), uniform(shape, hidden)));
        };
        add("weight_ih", {4 * hidden, in});
        add("weight_hh", {4 * hidden, hidden});
        add("bias_ih", {4 * hidden});
        add("bias_hh", {4 * hidden});
      }
    }
  }

  /// (P, inputs) -> (P, 2 hidden).
  at::Tensor forward(const at::Tensor& x_PD) const {
    const at::Tensor start = at::zeros({2 * num_layers_, 1, hidden_}, x_PD.options());
    return std::get<0>(at::lstm(x_PD.unsqueeze(0), {start, start}, weights_, /*has_biases=*/true, num_layers_, dropout_,
                                is_training(), /*bidirectional=*/true, /*batch_first=*/true))
        .squeeze(0);
  }

 private:
  int64_t hidden_, num_layers_;
  double dropout_;
  std::vector<at::Tensor> weights_;
};

class EncodedPrompt : public PromptEncoder {
 public:
  EncodedPrompt(const PTuningOptions& options, int64_t width) {
    const int64_t hidden = options.encoder_hidden_size > 0 ? options.encoder_hidden_size : width;
    set_embedding(at::randn({options.num_virtual_tokens, width}, at::kFloat));
    std::vector<int64_t> widths = {width, hidden, hidden, width};
    if (options.encoder == "LSTM") {
      lstm_head_ = register_module(
          "lstm_head", std::make_shared<BidirectionalLstm>(width, hidden, options.encoder_num_layers, options.encoder_dropout));
      widths = {2 * hidden, 2 * hidden, width};
    }
    mlp_head_ = register_module("mlp_head", std::make_shared<Network>(widths, at::relu));
  }

  int64_t length() const override { return embedding_weight.size(0); }
  bool is_prefix() const override { return false; }
  bool is_plain() const override { return false; }
  at::Tensor flat() override {
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    return mlp_head_->forward(lstm_head_ ? lstm_head_->forward(embedding_weight) : embedding_weight);
  }
  at::Tensor values() override { return flat(); }

 private:
  std::shared_ptr<BidirectionalLstm> lstm_head_;
  std::shared_ptr<Network> mlp_head_;
};

/// Rows of the model's table, as often as needed.
at::Tensor rows_of(const at::Tensor& table_VD, const at::Tensor& ids) {
  return table_VD.detach().index_select(0, ids.to(table_VD.device())).to(at::kFloat).cpu();
}

at::Tensor repeated(const std::vector<int64_t>& ids, int64_t count) {
  at::Tensor result = at::empty({count}, at::kLong);
  for (int64_t i = 0; i < count; ++i) result.data_ptr<int64_t>()[i] = ids[static_cast<size_t>(i) % ids.size()];
  return result;
}

}  // namespace

void PromptEncoder::set_embedding(const at::Tensor& weight) {
  embedding_weight = register_module("embedding", std::make_shared<Table>(weight))->weight;
}

void PromptEncoder::load_flat(const at::Tensor& prompt_embeddings) {
  require<ConfigError>(is_plain(),
                       "[adapters.prompt] a file holds what a network made of virtual tokens, from which its weights "
                       "cannot be found; start from a fresh one, or resume the run from its checkpoint");
  require<ShapeError>(prompt_embeddings.sizes() == embedding_weight.sizes() && prompt_embeddings.is_floating_point(),
                      "[adapters.load] prompt_embeddings must be float [{}] for this model; found {} [{}]; check "
                      "num_virtual_tokens of adapter_config.json, and that it belongs to this base model",
                      fmt::join(embedding_weight.sizes(), ", "), c10::toString(prompt_embeddings.scalar_type()),
                      fmt::join(prompt_embeddings.sizes(), ", "));
  const torch::NoGradGuard no_grad;
  embedding_weight.copy_(prompt_embeddings);
}

std::shared_ptr<PromptEncoder> make_prefix(const PrefixOptions& options, const nn::PromptShape& shape, bool as_stored) {
  return std::make_shared<Prefix>(options, shape, as_stored);
}

std::shared_ptr<PromptEncoder> make_prompt(const PromptOptions& options, const nn::PromptShape& shape,
                                           const at::Tensor& table_VD) {
  const int64_t count = options.num_virtual_tokens;
  require_positive("num_virtual_tokens", count);
  if (options.init == "RANDOM") return std::make_shared<PromptEmbedding>(at::randn({count, shape.hidden}, at::kFloat));
  if (options.init == "SAMPLE_VOCAB") {
    return std::make_shared<PromptEmbedding>(rows_of(table_VD, at::randint(table_VD.size(0), {count}, at::kLong)));
  }
  require<ConfigError>(options.init == "TEXT",
                       "[adapters.prompt] prompt_tuning_init must be RANDOM, SAMPLE_VOCAB or TEXT; found {:?}", options.init);
  require<ConfigError>(!options.init_ids.empty(),
                       "[adapters.prompt] prompt_tuning_init TEXT needs a text with tokens; found none; "
                       "give prompt_tuning_init_text and a tokenizer");
  for (const int64_t id : options.init_ids) {
    require<ConfigError>(id >= 0 && id < table_VD.size(0),
                         "[adapters.prompt] tokens of prompt_tuning_init_text must be below the "
                         "vocabulary's size, {}; found {}",
                         table_VD.size(0), id);
  }
  return std::make_shared<PromptEmbedding>(rows_of(table_VD, repeated(options.init_ids, count)));
}

std::shared_ptr<PromptEncoder> make_ptuning(const PTuningOptions& options, const nn::PromptShape& shape, bool as_stored) {
  require_positive("num_virtual_tokens", options.num_virtual_tokens);
  require<ConfigError>(options.encoder == "MLP" || options.encoder == "LSTM",
                       "[adapters.prompt] encoder_reparameterization_type must be MLP or LSTM; found {:?}", options.encoder);
  if (options.encoder == "LSTM") require_positive("encoder_num_layers", options.encoder_num_layers);
  require_dropout("encoder_dropout", options.encoder_dropout);
  if (as_stored) return std::make_shared<PromptEmbedding>(at::zeros({options.num_virtual_tokens, shape.hidden}, at::kFloat));
  return std::make_shared<EncodedPrompt>(options, shape.hidden);
}

}  // namespace lora
