// Fine-tunes ChatGLM-6B (or a small model of its kind) on ADGEN rows with LoRA and saves the adapter in PEFT's layout.
#include <lora/lora.h>
#include <lora/models/glm.h>

#include <cstdio>
#include <cstdlib>

int main(int argc, char** argv) {
  if (argc != 4 && argc != 5) {
    return std::fprintf(stderr, "usage: %s <chatglm-dir> <train.jsonl> <out-dir> [steps]\n", argv[0]), 2;
  }
  const lora::Path checkpoint = argv[1], train_file = argv[2], out = argv[3];
  const int64_t steps = argc == 5 ? std::atoll(argv[4]) : 100;
  try {
    auto model = lora::glm::load(checkpoint);
    const auto tokenizer = lora::glm::load_tokenizer(checkpoint);

    const auto adapters = lora::inject(*model, lora::LoraOptions{.rank = 8,
                                                                 .alpha = 32,
                                                                 .dropout = 0.1,
                                                                 .targets = std::vector<std::string>{"query_key_value"},
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
