#include <fmt/format.h>

#include <numeric>
#include <set>

#include "cli/command.h"
#include "cli/options.h"
#include "core/check.h"
#include "formats/json.h"
#include "lora/core/dtype.h"
#include "lora/core/file.h"
#include "lora/core/quantization.h"
#include "lora/core/text.h"
#include "lora/data/new_tokens.h"
#include "lora/io/carry_over.h"
#include "lora/io/dtype.h"
#include "lora/models/llama.h"
#include "lora/models/registry.h"

namespace lora::cli {
namespace {

struct ConvertCommand {
  std::string input, output, from = "auto", to = "hf", dtype, shard_size = "5GB", tokenizer, quantize, add_tokens,
                             new_rows = "mean";
  int64_t block_size = QuantizationScheme{}.block_size, vocabulary_multiple = 1;
  uint64_t seed = 0;
  bool double_quant = false, dry_run = false, overwrite = false;

  int run() const;
};

/// What the input is, by looking at it.
std::string detect(const Path& input) {
  require<IoError>(std::filesystem::exists(input), "[--input] the checkpoint must exist; found nothing at {}", input.string());
  if (std::filesystem::is_directory(input)) {
    if (std::filesystem::exists(input / "config.json")) return "hf";
    fail<FormatError>(
        "[--input] {} must be a checkpoint that this version reads (hf: a directory with config.json; "
        "llama2c: a file); give --from to insist",
        input.string());
  }
  require<FormatError>(llama::is_llama2c(input),
                       "[--input] {} must be a llama2.c checkpoint (a file) or a Hugging Face directory; it is neither",
                       input.string());
  return "llama2c";
}

/// A model in numbers.
struct Summary {
  int64_t parameters = 0, layers = 0;
  DType dtype = DType::kF32;
};

Summary summary_of(const llama::LlamaConfig& config) {
  Summary summary{.layers = config.num_hidden_layers, .dtype = config.dtype};
  for (const auto& [name, shape] : llama::llama_weight_shapes(config)) {
    summary.parameters += std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
  }
  return summary;
}

/// Of a directory that can be loaded, from its headers.
Summary summary_of(const models::Architecture& architecture, const Path& directory,
                   const std::optional<DType>& dtype = std::nullopt) {
  models::LoadOptions options{.device = at::kMeta};
  if (dtype) options.dtype = io::to_torch(*dtype, "--dtype");
  const auto model = architecture.load(directory, options);
  Summary summary{.layers = model->num_layers(), .dtype = io::from_torch(model->stored_dtype())};
  std::set<const at::TensorImpl*> seen;  // a tied tensor counts once
  for (const auto& parameter : model->parameters()) {
    if (seen.insert(parameter.unsafeGetTensorImpl()).second) summary.parameters += parameter.numel();
  }
  return summary;
}

void describe(const Summary& summary, const std::string& from, const std::string& output, bool dry_run) {
  fmt::print("{} {} -> hf {}: {} parameters, {} layers, {}\n", dry_run ? "would convert" : "converted", from, output,
             with_thousands(summary.parameters), summary.layers, short_name(summary.dtype));
}

/// Of a Hugging Face directory.
const models::Architecture& convertible(const Path& directory) {
  const auto& architecture = models::architecture_of(directory);
  require<ConfigError>(architecture.convert != nullptr,
                       "[--input] the architecture must be one that converts; found {:?} in {}, which was "
                       "registered without it",
                       architecture.name, directory.string());
  return architecture;
}

/// Where the tokens are those of tokenizer.model, new ones follow the last.
void require_growing(const models::Architecture& architecture) {
  require<ConfigError>(
      architecture.model_type == "llama" || architecture.model_type == "baichuan",
      "[--add-tokens] tokens are added where all ids are those of tokenizer.model (llama, baichuan); found {}, whose special "
      "tokens follow the pieces at fixed ids; leave the option out",
      architecture.model_type);
}

/// --quantize, --double-quant and --block-size; nothing: plain numbers.
std::optional<QuantizationScheme> quantization_of(const std::string& type, bool double_quant, int64_t block_size) {
  if (type.empty()) return std::nullopt;
  const auto known = quantized_type_from(type);
  require<ConfigError>(known.has_value(), "[--quantize] the type must be nf4, fp4 or int8; found {}", type);
  const QuantizationScheme scheme{*known, block_size, double_quant};
  check_quantization(scheme, "--quantize");
  return scheme;
}

/// Writes a Hugging Face directory with the layers' weights in few bits, as bitsandbytes stores them.
void quantize_hf(const models::Architecture& architecture, const Path& from, const Path& directory,
                 const QuantizationScheme& scheme, models::SaveOptions options) {
  models::LoadOptions loading{.quantization = scheme};
  if (options.dtype) loading.dtype = io::to_torch(*options.dtype, "--dtype");
  const auto model = architecture.load(from, loading);
  options.quantized = true;
  architecture.save(*model, directory, options);
}

/// The tokens of a file for the vocabulary of the model that is read.
llama::VocabularyGrowth growth_by(const ConvertCommand& command, const Path& tokenizer) {
  const Path model = std::filesystem::is_directory(tokenizer) ? tokenizer / "tokenizer.model" : tokenizer;
  require<IoError>(std::filesystem::exists(model),
                   "[--add-tokens] the vocabulary to add to must be a tokenizer.model; found none at {}; "
                   "give it with --tokenizer",
                   model.string());
  return {.tokenizer = data::extend_tokenizer(model, data::read_new_tokens(command.add_tokens)),
          .new_rows = command.new_rows,
          .seed = command.seed,
          .multiple = command.vocabulary_multiple};
}

void describe_growth(const llama::LlamaConfig& before, const llama::VocabularyGrowth& growth) {
  const auto& tokenizer = growth.tokenizer;
  fmt::print("{} new tokens, ids {} to {}, rows {}; rows of embedding and head: {} -> {}\n", tokenizer.tokens.size(),
             tokenizer.first_id, tokenizer.vocab_size() - 1, growth.new_rows, before.vocab_size,
             grown_vocabulary(before, growth));
}

/// New rows of the embedding, and of a head that is not its table.
int64_t added_parameters(const llama::LlamaConfig& before, const llama::VocabularyGrowth& growth) {
  const int64_t rows = grown_vocabulary(before, growth) - before.vocab_size;
  return rows * before.hidden_size * (before.tie_word_embeddings ? 1 : 2);
}

int ConvertCommand::run() const {
  const std::string kind = from == "auto" ? detect(input) : from;
  require<ConfigError>(kind == "hf" || kind == "llama2c", "[--from] this version reads hf and llama2c; found {}", kind);
  require<ConfigError>(to == "hf", "[--to] this version writes hf; found {}", to);
  const auto scheme = quantization_of(quantize, double_quant, block_size);
  require<ConfigError>(!scheme || kind == "hf",
                       "[--quantize] weights are put into few bits from hf; found {}; convert it to hf first", kind);
  require<ConfigError>(add_tokens.empty() || (kind == "hf" && !scheme),
                       "[--add-tokens] tokens are added to a plain Hugging Face "
                       "directory; found {}; add them first, then convert the result",
                       scheme ? "--quantize" : kind);
  const auto* architecture = kind == "hf" ? &convertible(input) : nullptr;
  if (!add_tokens.empty()) require_growing(*architecture);
  require_free_output(output, overwrite);

  models::SaveOptions options;
  if (!dtype.empty()) options.dtype = parse_float_dtype(dtype, "--dtype");
  options.shard_bytes = parse_bytes(shard_size, "--shard-size");
  if (!tokenizer.empty()) {
    require<IoError>(std::filesystem::is_regular_file(tokenizer), "[--tokenizer] the tokenizer must be a file; found none at {}",
                     tokenizer);
    options.copy_tokenizer_from = tokenizer;
  } else if (kind == "hf") {
    options.copy_tokenizer_from = input;
  }
  std::optional<llama::VocabularyGrowth> growth;
  std::optional<llama::LlamaConfig> before;
  if (!add_tokens.empty()) {
    before = llama::read_llama_config(input);
    growth = growth_by(*this, options.copy_tokenizer_from.value());
    grown_vocabulary(*before, *growth);
  }
  if (dry_run) {
    Summary summary =
        architecture ? summary_of(*architecture, input, options.dtype) : summary_of(llama::llama2c_config(input, options));
    if (growth) summary.parameters += added_parameters(*before, *growth);
    describe(summary, kind, output, true);
    if (growth) describe_growth(*before, *growth);
    return kDone;
  }
  AtomicDirectory directory{Path(output)};
  if (scheme) {
    quantize_hf(*architecture, input, directory.path(), *scheme, options);
  } else if (growth) {
    llama::convert_hf_with_tokens(input, directory.path(), *growth, options);
  } else if (architecture) {
    architecture->convert(input, directory.path(), options);
  } else {
    llama::convert_llama2c(input, directory.path(), options);
  }
  if (architecture) io::carry_over_config(input, directory.path());
  const Summary summary =
      architecture ? summary_of(*architecture, directory.path()) : summary_of(llama::llama2c_config(input, options));
  directory.commit();
  describe(summary, kind, output, false);
  if (growth) describe_growth(*before, *growth);
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
  auto* quantize = command->add_option("--quantize", state->quantize,
                                       "nf4, fp4 or int8: the layers' weights in few bits, as bitsandbytes stores them");
  command->add_flag("--double-quant", state->double_quant, "The scales of 4 bits in 8 bits")->needs(quantize);
  command->add_option("--block-size", state->block_size, "Numbers of 4 bits that share a scale")
      ->capture_default_str()
      ->needs(quantize);
  command->add_option("--tokenizer", state->tokenizer, "SentencePiece model to put beside the weights");
  auto* add_tokens = command->add_option("--add-tokens", state->add_tokens,
                                         "File with one new token per line: tokenizer, embedding and head gain them");
  command
      ->add_option("--new-rows", state->new_rows,
                   "mean: of the rows of a token's old pieces; random: normal, with the old rows' deviation")
      ->capture_default_str()
      ->needs(add_tokens);
  command->add_option("--seed", state->seed, "Of random rows")->capture_default_str()->needs(add_tokens);
  command
      ->add_option("--pad-vocab-to-multiple-of", state->vocabulary_multiple,
                   "When the tables grow: to a multiple of so many rows")
      ->capture_default_str()
      ->needs(add_tokens);
  command->add_flag("--dry-run", state->dry_run, "Say what would be done, write nothing");
  command->add_flag("--overwrite", state->overwrite, "Replace an existing output");
  add_log_options(*command);
  command->callback([state, &action] { action = [state] { return state->run(); }; });
}

}  // namespace lora::cli
