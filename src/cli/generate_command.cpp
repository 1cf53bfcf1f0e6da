#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <optional>

#include "cli/command.h"
#include "cli/options.h"
#include "core/check.h"
#include "formats/json.h"
#include "lora/config/run_config.h"
#include "lora/data/chat_template.h"
#include "lora/data/dataset.h"
#include "lora/formats/prompt_template.h"
#include "lora/generate/generate.h"

namespace lora::cli {
namespace {

struct GenerateCommand {
  ModelOptions model;
  std::string prompt, system, form;
  std::optional<std::string> prompt_ids;
  bool chat = false, json = false;
  generate::GenerateOptions options;

  int run() const;
};

/// "1,2,3" as numbers.
std::vector<int64_t> parse_ids(std::string_view text) {
  std::vector<int64_t> ids;
  for (bool is_last = false; !is_last;) {
    const auto comma = text.find(',');
    is_last = comma == std::string_view::npos;
    std::string_view item = text.substr(0, comma);
    while (item.starts_with(' ')) item.remove_prefix(1);
    while (item.ends_with(' ')) item.remove_suffix(1);
    int64_t id = 0;
    const auto [end, error] = std::from_chars(item.data(), item.data() + item.size(), id);
    require<ConfigError>(error == std::errc() && end == item.data() + item.size() && id >= 0,
                         "[--prompt-ids] token ids must be whole numbers with commas between; found \"{}\"", item);
    ids.push_back(id);
    if (!is_last) text.remove_prefix(comma + 1);
  }
  return ids;
}

/// A template by its name, or that of a run file; nothing where neither says one.
std::optional<formats::PromptTemplate> template_of(const std::string& word) {
  const auto names = formats::prompt_template_names();
  const bool is_file = std::ranges::find(names, word) == names.end() && std::filesystem::is_regular_file(word);
  if (!is_file) return formats::prompt_template(word);
  return config::load_run_config(word, {}, std::filesystem::current_path(), "").data.prompt_template;
}

std::vector<int64_t> chat_prompt(const GenerateCommand& command, const data::Tokenizer& tokenizer) {
  std::vector<data::Message> messages;
  if (!command.system.empty()) messages.push_back({.role = "system", .content = command.system});
  messages.push_back({.role = "user", .content = command.prompt});
  const auto form = command.form.empty() ? std::nullopt : template_of(command.form);
  const auto example = data::encode_chat(messages, tokenizer, form ? *form : data::model_template(tokenizer));
  return {example.input_ids.begin(), example.input_ids.end()};
}

/// Null without a tokenizer.
formats::Json text_of(const generate::Generation& generation, const LoadedModel& loaded) {
  return loaded.tokenizer == nullptr ? formats::Json() : formats::Json(generated_text(*loaded.tokenizer, generation));
}

int GenerateCommand::run() const {
  const bool is_chat = chat || !form.empty() || !system.empty();
  require<ConfigError>((form.empty() && system.empty()) || !prompt_ids,
                       "[--prompt-ids] token ids are taken as they are; found --template or --system beside them; give --prompt");
  if (!form.empty()) template_of(form);  // before the model is loaded
  std::vector<int64_t> ids = prompt_ids ? parse_ids(*prompt_ids) : std::vector<int64_t>{};
  const LoadedModel loaded = load_model(model);
  if (!prompt_ids) {
    const auto& tokenizer = require_tokenizer(loaded, "--prompt");
    ids = is_chat ? chat_prompt(*this, tokenizer) : data::encode_prompt(tokenizer, prompt);
  }
  auto all_options = options;
  all_options.stop_ids = loaded.model->end_ids();
  const auto generation = generate::complete(*loaded.model, ids, all_options, loaded.device);
  const formats::Json text = text_of(generation, loaded);
  if (json) {
    formats::Json result = {{"text", text},
                            {"token_ids", generation.token_ids},
                            {"logprobs", generation.logprobs},
                            {"score", generation.score},
                            {"finish_reason", generation.finish_reason}};
    if (options.beams.num_beams > 1) result["beam_score"] = generation.beam_score;
    fmt::print("{}\n", result.dump());
  } else {
    fmt::print("{}\n", text.is_null() ? fmt::format("{}", fmt::join(generation.token_ids, ",")) : text.get<std::string>());
  }
  return kDone;
}

}  // namespace

void add_generate_command(CLI::App& program, Action& action) {
  auto* command = program.add_subcommand("generate", "Completes one prompt");
  command->footer("Example: lora generate --model base --adapter out/adapter --prompt \"Hello\" --max-new-tokens 32");
  auto state = std::make_shared<GenerateCommand>();
  state->model.add_to(*command);
  auto* prompts = command->add_option_group("prompt");
  prompts->add_option("--prompt", state->prompt, "Text to continue");
  prompts->add_option("--prompt-ids", state->prompt_ids, "Token ids to continue, taken as they are: \"1,2,3\"");
  prompts->require_option(1);
  command->add_flag("--chat", state->chat,
                    "Put --prompt into the chat template of the model (for models tuned on chat or alpaca rows)");
  command->add_option("--template", state->form,
                      "Put it into this template: llama2, vicuna, alpaca, chatglm, or a run file that has data.template");
  command->add_option("--system", state->system, "System text of the chat");
  command->add_option("--max-new-tokens", state->options.max_new_tokens, "Most tokens to generate")->capture_default_str();
  command->add_option("--temperature", state->options.sampling.temperature, "0 is greedy")->capture_default_str();
  command->add_option("--top-k", state->options.sampling.top_k, "Only the k likeliest tokens; 0: all")->capture_default_str();
  command->add_option("--top-p", state->options.sampling.top_p, "Only tokens within this probability mass")
      ->capture_default_str();
  command
      ->add_option("--repetition-penalty", state->options.repetition_penalty,
                   "Above 1: tokens of prompt and answer become less likely; 1: off")
      ->capture_default_str();
  command->add_option("--num-beams", state->options.beams.num_beams, "Beam search with so many beams, at temperature 0; 1: none")
      ->capture_default_str();
  command
      ->add_option("--length-penalty", state->options.beams.length_penalty,
                   "Of a beam search: above 0 for longer answers, below 0 for shorter ones")
      ->capture_default_str();
  command->add_option("--seed", state->options.seed, "Of the sampling")->check(CLI::NonNegativeNumber)->capture_default_str();
  command
      ->add_option("--prompt-lookup-num-tokens", state->options.prompt_lookup_num_tokens,
                   "At temperature 0: most tokens guessed from the text so far and checked in one pass, for speed alone; 0: none")
      ->capture_default_str();
  command->add_flag("--json", state->json, "Print one JSON object");
  add_log_options(*command);
  command->callback([state, &action] { action = [state] { return state->run(); }; });
}

}  // namespace lora::cli
