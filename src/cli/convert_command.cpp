#include <fmt/format.h>

#include <numeric>

#include "cli/command.h"
#include "cli/options.h"
#include "core/check.h"
#include "formats/json.h"
#include "lora/core/dtype.h"
#include "lora/core/file.h"
#include "lora/core/text.h"

namespace lora::cli {
namespace {

struct ConvertCommand {
  std::string input, output, from = "auto", to = "hf", dtype, shard_size = "5GB", tokenizer;
  bool dry_run = false, overwrite = false;

  int run() const;
};

/// What the input is, by looking at it.
std::string detect(const Path& input) {
  require<IoError>(std::filesystem::exists(input), "[--input] the checkpoint must exist; found nothing at {}",
                   input.string());
  if (std::filesystem::is_directory(input)) {
    if (std::filesystem::exists(input / "config.json")) return "hf";
    fail<FormatError>("[--input] {} must be a checkpoint that this version reads (hf: a directory with config.json; "
                      "llama2c: a file); give --from to insist", input.string());
  }
  require<FormatError>(llama::is_llama2c(input),
                       "[--input] {} must be a llama2.c checkpoint (a file) or a Hugging Face directory; it is neither",
                       input.string());
  return "llama2c";
}

void describe(const llama::LlamaConfig& config, const std::string& from, const std::string& output, bool dry_run) {
  int64_t parameters = 0;
  for (const auto& [name, shape] : llama::llama_weight_shapes(config)) {
    parameters += std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
  }
  fmt::print("{} {} -> hf {}: {} parameters, {} layers, {}\n", dry_run ? "would convert" : "converted", from, output,
             with_thousands(parameters), config.num_hidden_layers, short_name(config.dtype));
}

int ConvertCommand::run() const {
  const std::string kind = from == "auto" ? detect(input) : from;
  require<ConfigError>(kind == "hf" || kind == "llama2c",
                       "[--from] this version reads hf and llama2c; found {}", kind);
  require<ConfigError>(to == "hf", "[--to] this version writes hf; found {}", to);
  require_free_output(output, overwrite);

  llama::SaveOptions options;
  if (!dtype.empty()) options.dtype = parse_float_dtype(dtype, "--dtype");
  options.shard_bytes = parse_bytes(shard_size, "--shard-size");
  if (!tokenizer.empty()) {
    require<IoError>(std::filesystem::is_regular_file(tokenizer), "[--tokenizer] the tokenizer must be a file; found none at {}",
                     tokenizer);
    options.copy_tokenizer_from = tokenizer;
  } else if (kind == "hf") {
    options.copy_tokenizer_from = input;
  }
  if (dry_run) {
    describe(kind == "hf" ? llama::read_llama_config(input) : llama::llama2c_config(input, options), kind, output, true);
    return kDone;
  }
  AtomicDirectory directory{Path(output)};
  const auto config = kind == "hf" ? llama::convert_hf(input, directory.path(), options)
                                   : llama::convert_llama2c(input, directory.path(), options);
  directory.commit();
  describe(config, kind, output, false);
  return kDone;
}

}  // namespace

void add_convert_command(CLI::App& program, Action& action) {
  auto* command = program.add_subcommand("convert", "Checkpoint formats to and from Hugging Face's layout");
  command->footer("Example: lora convert --from llama2c --input stories260K.bin --tokenizer tok512.model --output stories");
  auto state = std::make_shared<ConvertCommand>();
  command->add_option("--input", state->input, "File or directory to read")->required();
  command->add_option("--output", state->output, "Directory to write")->required();
  command->add_option("--from", state->from, "auto, hf or llama2c")->capture_default_str();
  command->add_option("--to", state->to, "hf")->capture_default_str();
  command->add_option("--dtype", state->dtype, "fp32, bf16 or fp16 (default: as it is)");
  command->add_option("--shard-size", state->shard_size, "Largest weight file, for example 2GB")->capture_default_str();
  command->add_option("--tokenizer", state->tokenizer, "SentencePiece model to put beside the weights");
  command->add_flag("--dry-run", state->dry_run, "Say what would be done, write nothing");
  command->add_flag("--overwrite", state->overwrite, "Replace an existing output");
  add_log_options(*command);
  command->callback([state, &action] { action = [state] { return state->run(); }; });
}

}  // namespace lora::cli
