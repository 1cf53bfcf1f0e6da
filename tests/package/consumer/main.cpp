// A user's program: adapts a module of its own and a tiny Llama, and checks what LoRA promises.
#include <lora/lora.h>
#include <lora/models/llama.h>

#include <cstdio>
#include <cstdlib>

namespace {

void check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "consumer: %s\n", what);
  std::exit(1);
}

class HeadImpl : public torch::nn::Module {
 public:
  HeadImpl() { proj = register_module("proj", lora::nn::Linear(6, 4)); }
  at::Tensor forward(const at::Tensor& x) { return proj->forward(x); }

  lora::nn::Linear proj{nullptr};
};

void adapt_own_module() {
  HeadImpl head;
  const auto x = at::ones({2, 6});
  const auto base = head.forward(x);
  const auto adapters = lora::inject(head, lora::LoraOptions{.rank = 2, .targets = std::vector<std::string>{"proj"}});
  const auto report = lora::freeze_base(head, adapters);
  check(report.trainable == 2 * (6 + 4), "rank 2 on a 6 x 4 layer must train 20 parameters");
  check(head.forward(x).equal(base), "a fresh adapter must not change the output");

  head.forward(x).sum().backward();
  check(!head.proj->weight.grad().defined(), "the frozen weight must get no gradient");
  for (const auto& parameter : adapters.parameters()) {
    check(parameter.grad().defined(), "every adapter tensor must get a gradient");
  }
}

void adapt_llama() {
  lora::llama::LlamaConfig config;
  config.vocab_size = 32;
  config.hidden_size = 16;
  config.intermediate_size = 32;
  config.num_hidden_layers = 1;
  config.num_attention_heads = config.num_key_value_heads = 2;
  config.head_dim = 8;
  config.max_position_embeddings = 8;
  lora::llama::LlamaForCausalLM model(config);
  lora::inject(*model, lora::LoraOptions{.rank = 2});

  lora::Batch batch;
  batch.input_ids_BS = at::arange(8).view({2, 4});
  check(model->forward(batch).sizes() == at::IntArrayRef{2, 4, 32}, "logits must be (B, S, V)");
}

}  // namespace

int main() {
  adapt_own_module();
  adapt_llama();
  std::puts("OK");
}
