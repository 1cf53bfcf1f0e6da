// Fine-tunes a Llama on ADGEN rows with LoRA and saves the adapter in PEFT's layout: the library's face.
#include <lora/lora.h>
#include <lora/models/llama.h>

#include <cstdio>
#include <cstdlib>

int main(int argc, char** argv) {
  if (argc != 4 && argc != 5) {
    return std::fprintf(stderr, "usage: %s <llama-dir> <train.jsonl> <out-dir> [steps]\n", argv[0]), 2;
  }
  const lora::Path checkpoint = argv[1], train_file = argv[2], out = argv[3];
  const int64_t steps = argc == 5 ? std::atoll(argv[4]) : 100;
  try {
    auto model = lora::llama::load(checkpoint);
    const auto tokenizer = lora::llama::load_tokenizer(checkpoint);

    const auto adapters = lora::inject(*model, lora::LoraOptions{.rank = 8,
                                                                 .alpha = 16,
                                                                 .dropout = 0.05,
                                                                 .targets = std::vector<std::string>{"q_proj", "v_proj"},
                                                                 .base_model_name = checkpoint.string()});
    std::puts(lora::freeze_base(*model, adapters).summary().c_str());

    const auto dataset = lora::data::adgen(train_file, *tokenizer, {.max_source = 64, .max_target = 64});
    lora::data::Loader loader(dataset, {.batch_size = 8, .prefetch = 2, .num_steps = steps});

    lora::train::Trainer trainer(model, adapters, {.steps = steps, .learning_rate = 2e-3, .clip_norm = 1.0});
    trainer.on_step(lora::train::log_every(10));
    const auto last = trainer.fit(loader);

    lora::save_adapter(adapters, out);
    std::printf("loss %.4f after %lld steps\n", last->loss, static_cast<long long>(last->step));
  } catch (const lora::Error& error) {
    return std::fprintf(stderr, "error: %s\n", error.what()), 1;
  }
}
