// Rows per second of generation: in batches, row by row with a cache, and row by row without one, in turns.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <functional>
#include <iostream>

#include "lora/core/random.h"
#include "lora/core/stopwatch.h"
#include "lora/io/dtype.h"
#include "lora/lora.h"
#include "lora/models/glm.h"
#include "lora/models/llama.h"

namespace {

using namespace lora;
using generate::Generation;
using generate::PromptRow;

struct Options {
  int64_t hidden = 256, layers = 6, vocabulary = 8000, rows = 32, prompt_tokens = 96, new_tokens = 64, sequences = 32;
  double ends = 0.01;  ///< part of the vocabulary that ends a row
  int rounds = 3, threads = 1;
  std::string arch = "llama", dtype = "fp32";
};

std::shared_ptr<nn::CausalLMImpl> random_llama(const Options& options) {
  return std::make_shared<llama::LlamaForCausalLMImpl>(llama::fresh_llama_config(
      std::nullopt, {{"vocab_size", std::to_string(options.vocabulary)},
                     {"hidden_size", std::to_string(options.hidden)},
                     {"intermediate_size", std::to_string(options.hidden * 8 / 3)},
                     {"num_hidden_layers", std::to_string(options.layers)},
                     {"num_attention_heads", std::to_string(options.hidden / 64)},
                     {"max_position_embeddings", std::to_string(options.prompt_tokens + options.new_tokens)}}));
}

std::shared_ptr<nn::CausalLMImpl> random_glm(const Options& options) {
  return std::make_shared<glm::ChatGlmForConditionalGenerationImpl>(
      glm::fresh_glm_config(std::nullopt, {{"vocab_size", std::to_string(options.vocabulary)},
                                           {"hidden_size", std::to_string(options.hidden)},
                                           {"inner_hidden_size", std::to_string(options.hidden * 4)},
                                           {"num_layers", std::to_string(options.layers)},
                                           {"num_attention_heads", std::to_string(options.hidden / 64)},
                                           {"max_sequence_length", std::to_string(options.prompt_tokens + options.new_tokens)}}));
}

std::shared_ptr<nn::CausalLMImpl> random_model(const Options& options) {
  at::manual_seed(1);
  auto model = options.arch == "glm" ? random_glm(options) : random_llama(options);
  model->to(io::to_torch(parse_float_dtype(options.dtype, "--dtype"), "--dtype"));
  model->eval();
  return model;
}

/// Ids from here on may have a meaning.
int64_t first_special(const Options& options) { return options.vocabulary - (options.arch == "glm" ? 16 : 0); }

/// Prompts of a quarter of the longest to the longest, which end with `start`.
std::vector<PromptRow> random_prompts(const Options& options, const std::vector<int64_t>& start) {
  SplitMix64 random(2);
  std::vector<PromptRow> prompts;
  for (int64_t row = 0; row < options.rows; ++row) {
    const auto shortest = options.prompt_tokens / 4;
    const auto length =
        shortest + static_cast<int64_t>(random.below(static_cast<uint64_t>(options.prompt_tokens - shortest + 1)));
    PromptRow prompt{.row = row, .ids = {}};
    for (int64_t i = std::ssize(start); i < length; ++i)
      prompt.ids.push_back(static_cast<int64_t>(random.below(static_cast<uint64_t>(first_special(options)))));
    prompt.ids.insert(prompt.ids.end(), start.begin(), start.end());
    prompts.push_back(prompt);
  }
  return prompts;
}

/// Draws, so that rows end after different numbers of tokens.
generate::GenerateOptions generate_options(const Options& options) {
  generate::GenerateOptions result;
  result.max_new_tokens = options.new_tokens;
  result.sampling.temperature = 1;
  for (int64_t id = 0; id < static_cast<int64_t>(options.ends * static_cast<double>(options.vocabulary)); ++id)
    result.stop_ids.push_back(id);
  for (int64_t id = first_special(options); id < options.vocabulary; ++id) result.stop_ids.push_back(id);
  return result;
}

std::vector<Generation> row_by_row(nn::CausalLMImpl& model, const std::vector<PromptRow>& prompts,
                                   const generate::GenerateOptions& options) {
  std::vector<Generation> results;
  for (const PromptRow& prompt : prompts) {
    auto own = options;
    own.seed = generate::row_seed(options.seed, prompt.row);
    results.push_back(generate::complete(model, prompt.ids, own, at::kCPU));
  }
  return results;
}

/// Every token runs the whole sequence.
Generation without_cache(nn::CausalLMImpl& model, const PromptRow& prompt, const generate::GenerateOptions& options) {
  const at::NoGradGuard no_gradients;
  SplitMix64 random(generate::row_seed(options.seed, prompt.row));
  Generation result;
  auto ids = prompt.ids;
  for (int64_t i = 0; i < options.max_new_tokens; ++i) {
    Batch batch;
    batch.input_ids_BS = at::tensor(ids, at::kLong).unsqueeze(0);
    const at::Tensor logits_V = model.logits_of(model.hidden(batch).select(1, -1)).squeeze(0);
    ids.push_back(generate::sample_token(logits_V, options.sampling, random).id);
    result.token_ids.push_back(ids.back());
    if (std::ranges::find(options.stop_ids, ids.back()) != options.stop_ids.end()) break;
  }
  return result;
}

struct Way {
  std::string name;
  std::function<std::vector<Generation>()> run;
  std::vector<double> seconds = {};
  std::vector<Generation> results = {};
};

/// Median over rounds of one way's time by another's of the same round.
double ratio(const Way& slow, const Way& fast) {
  std::vector<double> ratios;
  for (size_t i = 0; i < fast.seconds.size(); ++i) ratios.push_back(slow.seconds[i] / fast.seconds[i]);
  std::ranges::sort(ratios);
  return ratios[ratios.size() / 2];
}

size_t rows_alike(const Way& one, const Way& other) {
  size_t alike = 0;
  for (size_t i = 0; i < one.results.size(); ++i) alike += one.results[i].token_ids == other.results[i].token_ids ? 1 : 0;
  return alike;
}

void measure(const Options& options) {
  at::set_num_threads(options.threads);
  const auto model = random_model(options);
  const auto prompts = random_prompts(options, model->answer_start());
  const auto how = generate_options(options);
  std::vector<Way> ways{
      {"batched", [&] { return generate::complete_all(*model, prompts, how, {.max_sequences = options.sequences}, at::kCPU); }},
      {"row by row, cache", [&] { return row_by_row(*model, prompts, how); }},
      {"row by row, no cache", [&] {
         std::vector<Generation> results;
         for (const PromptRow& prompt : prompts) results.push_back(without_cache(*model, prompt, how));
         return results;
       }}};
  for (int round = 0; round < options.rounds; ++round) {
    for (Way& way : ways) {
      const Stopwatch watch;
      way.results = way.run();
      way.seconds.push_back(watch.seconds());
    }
  }
  size_t tokens = 0;
  for (const Generation& one : ways[0].results) tokens += one.token_ids.size();
  fmt::print("{} rows, {} new tokens; seconds of {} rounds:\n", options.rows, tokens, options.rounds);
  for (const Way& way : ways) {
    fmt::print("  {:<22} {:.3f}  {} rows alike\n", way.name, fmt::join(way.seconds, " "), rows_alike(way, ways[0]));
  }
  fmt::print("batched against row by row with a cache: {:.2f}; without: {:.2f} (medians of rounds)\n", ratio(ways[1], ways[0]),
             ratio(ways[2], ways[0]));
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Rows per second of generation with a model of random weights, three ways in turns");
  app.add_option("--arch", options.arch)->check(CLI::IsMember({"llama", "glm"}))->capture_default_str();
  app.add_option("--hidden", options.hidden, "Width; heads have 64")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--layers", options.layers)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--vocabulary", options.vocabulary)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--rows", options.rows)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--prompt-tokens", options.prompt_tokens, "Of the longest prompt")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--new-tokens", options.new_tokens)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--ends", options.ends, "Part of the vocabulary that ends a row")->capture_default_str();
  app.add_option("--sequences", options.sequences, "Rows of a batch")->capture_default_str();
  app.add_option("--rounds", options.rounds)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--threads", options.threads)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--dtype", options.dtype)->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    measure(options);
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
  return 0;
}
