#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "cli/command.h"
#include "cli/options.h"
#include "core/check.h"
#include "core/overloaded.h"
#include "formats/json.h"
#include "lora/adapters/adapter_io.h"
#include "lora/core/file.h"
#include "lora/core/mapped_file.h"
#include "lora/core/text.h"
#include "lora/data/dataset.h"
#include "lora/formats/gguf.h"
#include "lora/formats/records.h"
#include "lora/io/adapter_files.h"
#include "lora/io/dtype.h"
#include "lora/io/model_files.h"
#include "lora/io/quantized.h"
#include "lora/models/llama.h"
#include "lora/train/checkpoint.h"

namespace lora::cli {
namespace {

using formats::Json;

struct InspectCommand {
  std::string path;
  bool json = false;

  int run() const;
};

int64_t elements(const std::vector<int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

/// Adds one tensor to the lists and sums of `result`.
void add_tensor(Json& result, const std::string& name, std::string_view dtype, const std::vector<int64_t>& shape) {
  const bool is_computed = name.ends_with("rotary_emb.inv_freq");  // a buffer of old checkpoints
  const int64_t count = is_computed ? 0 : elements(shape);
  result["tensors"].push_back({{"name", name}, {"dtype", dtype}, {"shape", shape}});
  result["parameters"] = result.value("parameters", int64_t{0}) + count;
  result["dtypes"][std::string(dtype)] = result["dtypes"].value(std::string(dtype), int64_t{0}) + count;
}

void add_tensors(Json& result, const Path& file) {
  const io::SafetensorsFile tensors(file);
  for (const auto& entry : tensors.header().tensors) {
    add_tensor(result, entry.name, safetensors_name(entry.dtype), entry.shape);
  }
}

Json begin(const char* kind) {
  return {{"kind", kind}, {"tensors", Json::array()}, {"dtypes", Json::object()}, {"parameters", 0}};
}

/// Of all weights below a directory, by name and content.
std::string weights_digest(const Path& directory) {
  std::vector<Path> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory)) {
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
  }
  std::ranges::sort(files);
  std::string text;
  for (const Path& file : files) text += fmt::format("{} {}\n", file.lexically_relative(directory).string(), file_digest(file));
  return digest(std::as_bytes(std::span(text)));
}

Json inspect_safetensors(const Path& file) {
  Json result = begin("safetensors");
  add_tensors(result, file);
  result["metadata"] = io::SafetensorsFile(file).header().metadata;
  result["digest"] = file_digest(file);
  return result;
}

Json inspect_model(const Path& directory) {
  Json result = begin("model");
  const io::ModelFiles files(directory);
  std::set<std::string> companions;
  for (const auto& name : files.names()) {
    for (auto& companion : io::companions_of(files, name)) companions.insert(std::move(companion));
  }
  for (const auto& name : files.names()) {
    if (companions.contains(name)) continue;
    const auto stored = io::stored_weight(files, name);
    add_tensor(result, name, stored.scheme ? name_of(stored.scheme->type) : safetensors_name(stored.dtype), stored.shape);
  }
  result["config"] = formats::parse_json(read_file(directory / "config.json"), (directory / "config.json").string());
  const Json& config = result["config"];
  if (config.contains("model_type")) result["model_type"] = config.at("model_type");
  for (const char* key : {"num_hidden_layers", "num_layers"}) {
    if (config.contains(key)) result["layers"] = config.at(key);
  }
  result["tokenizer"] =
      std::filesystem::exists(directory / "tokenizer.model") || std::filesystem::exists(directory / "ice_text.model");
  result["digest"] = weights_digest(directory);
  return result;
}

/// ||B A|| = sqrt(sum((B^T B) * (A A^T))), elementwise product: no matrix of the layer's size is made.
double product_norm(const at::Tensor& b_OR, const at::Tensor& a_RI) {
  const at::Tensor b = b_OR.to(at::kDouble), a = a_RI.to(at::kDouble);
  return std::sqrt(std::max(0.0, (b.t().mm(b) * a.mm(a.t())).sum().item<double>()));
}

std::string without_prefix(std::string module) {
  for (const char* prefix : {"base_model.model.", "base_model."}) {
    if (module.starts_with(prefix)) module.erase(0, std::string_view(prefix).size());
  }
  return module;
}

/// The same of scale * B diag(E) A.
Json adalora_norms(const io::AdapterFiles& files, const AdaLoraOptions& options) {
  Json norms = Json::object();
  const double scale = adalora_scale(options);
  for (const auto& [name, e_R1] : files.tensors) {
    if (!name.ends_with(".lora_E")) continue;
    const std::string module = name.substr(0, name.size() - std::string_view(".lora_E").size());
    const auto a_RI = files.tensors.find(module + ".lora_A"), b_OR = files.tensors.find(module + ".lora_B");
    if (a_RI == files.tensors.end() || b_OR == files.tensors.end()) continue;
    norms[without_prefix(module)] = scale * product_norm(b_OR->second, a_RI->second * e_R1);
  }
  return norms;
}

/// Frobenius norm of scale * B A per adapted module: how far the adapter moves each weight.
Json update_norms(const io::AdapterFiles& files) {
  Json norms = Json::object();
  const MethodOptions method = options_from(files.config);
  if (const auto* adalora = std::get_if<AdaLoraOptions>(&method)) return adalora_norms(files, *adalora);
  if (!std::holds_alternative<LoraOptions>(method)) return norms;
  const auto& options = std::get<LoraOptions>(method);
  for (const auto& [name, b_OR] : files.tensors) {
    for (const std::string factor : {".lora_", ".lora_embedding_"}) {
      const auto end = name.find(factor + "B");
      if (end == std::string::npos) continue;
      std::string a_name = name;
      a_name.replace(end, factor.size() + 1, factor + "A");
      const auto a_RI = files.tensors.find(a_name);
      if (a_RI == files.tensors.end()) continue;
      const std::string module = without_prefix(name.substr(0, end));
      norms[module] = std::abs(lora_size(options, module).scale) * product_norm(b_OR, a_RI->second);
    }
  }
  return norms;
}

Json lora_numbers(const formats::PeftLoraConfig& lora) {
  Json numbers = {{"r", lora.r}, {"lora_alpha", lora.lora_alpha}};
  for (const auto& [module, rank] : lora.rank_pattern) numbers["rank_pattern"][module] = rank;
  for (const auto& [module, alpha] : lora.alpha_pattern) numbers["alpha_pattern"][module] = alpha;
  if (lora.loftq) numbers["loftq_config"] = {{"loftq_bits", lora.loftq->bits}, {"loftq_iter", lora.loftq->iter}};
  return numbers;
}

/// The key numbers of a method, in the words of its file.
Json method_numbers(const formats::AdapterConfig& config) {
  const auto of_prompt = [](const formats::PeftPromptLearning& prompt) {
    return Json{{"num_virtual_tokens", prompt.num_virtual_tokens}};
  };
  return std::visit(
      Overloaded{
          [](const formats::PeftLoraConfig& lora) { return lora_numbers(lora); },
          [](const formats::PeftAdaLoraConfig& adalora) {
            return Json{{"init_r", adalora.init_r}, {"target_r", adalora.target_r}, {"lora_alpha", adalora.lora.lora_alpha}};
          },
          [](const formats::PeftIa3Config&) { return Json::object(); },
          [](const formats::PeftTrainableTokensConfig& rows) {
            return Json{{"token_indices", rows.token_indices}};
          },
          [&](const formats::PeftPrefixConfig& prefix) { return of_prompt(prefix.prompt); },
          [&](const formats::PeftPromptConfig& prompt) { return of_prompt(prompt.prompt); },
          [&](const formats::PeftPTuningConfig& ptuning) { return of_prompt(ptuning.prompt); },
          [](const formats::AdapterHubConfig& hub) {
            return Json{{"reduction_factor", hub.reduction_factor}};
          }},
      config);
}

/// Ranks per module where they differ: AdaLoRA's.
Json kept_ranks(const io::AdapterFiles& files) {
  Json ranks = Json::object();
  for (const auto& [name, tensor] : files.tensors) {
    if (name.ends_with(".lora_E")) ranks[without_prefix(name.substr(0, name.size() - 7))] = tensor.size(0);
  }
  return ranks;
}

/// Names of the adapters that lie in folders of the first one's.
std::vector<std::string> adapters_beside(const Path& directory) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    if (std::filesystem::exists(entry.path() / "adapter_config.json")) names.push_back(entry.path().filename().string());
  }
  std::ranges::sort(names);
  return names;
}

Json inspect_adapter(const Path& directory) {
  Json result = begin("adapter");
  const auto files = io::read_adapter_files(directory);
  for (const auto& [name, tensor] : files.tensors) {
    add_tensor(result, name, safetensors_name(io::from_torch(tensor.scalar_type())), tensor.sizes().vec());
  }
  const auto config_file = directory / "adapter_config.json";
  const Json config_json = formats::parse_json(read_file(config_file), config_file.string());
  const MethodOptions method = options_from(files.config);
  Json& adapter = result["adapter"] = method_numbers(files.config);
  adapter["method"] = method_name(method);
  adapter["target_modules"] = config_json.value("target_modules", Json());
  adapter["base_model"] = base_model_name(method).empty() ? Json() : Json(base_model_name(method));
  adapter["update_norms"] = update_norms(files);
  const Json ranks = kept_ranks(files);
  if (!ranks.empty()) adapter["ranks"] = ranks;
  result["config"] = config_json;
  if (const auto others = adapters_beside(directory); !others.empty()) result["adapters"] = others;
  if (std::filesystem::exists(directory / "adapter_model.safetensors")) {
    result["digest"] = file_digest(directory / "adapter_model.safetensors");
  }
  return result;
}

Json inspect_checkpoint(const Path& directory) {
  Json result = begin("checkpoint");
  result["step"] = train::checkpoint_position(directory).step;
  const auto problem = train::verify_checkpoint(directory);
  result["verified"] = !problem;
  if (problem) result["problem"] = *problem;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory)) {
    const std::string name = entry.path().filename().string();
    const bool is_state = name == "optimizer.safetensors" || name == "generator.safetensors";  // no parameters
    if (entry.path().extension() == ".safetensors" && !is_state) add_tensors(result, entry.path());
  }
  result["digest"] = weights_digest(directory);
  return result;
}

Json inspect_run(const Path& directory) {
  Json result = begin("run");
  result["config"] = read_file(directory / "config.yaml");
  result["checkpoints"] = Json::array();
  if (std::filesystem::is_directory(directory / "checkpoints")) {
    for (const auto& entry : std::filesystem::directory_iterator(directory / "checkpoints")) {
      result["checkpoints"].push_back(entry.path().filename().string());
    }
    std::sort(result["checkpoints"].begin(), result["checkpoints"].end());
  }
  const Path adapter = directory / "adapter", model = directory / "model";
  if (std::filesystem::is_directory(adapter)) {
    add_tensors(result, adapter / "adapter_model.safetensors");
    for (const auto& name : adapters_beside(adapter)) add_tensors(result, adapter / name / "adapter_model.safetensors");
    result["digest"] = weights_digest(adapter);
  }
  if (std::filesystem::is_directory(model)) {
    for (const auto& entry : std::filesystem::directory_iterator(model)) {
      if (entry.path().extension() == ".safetensors") add_tensors(result, entry.path());
    }
    result[result.contains("digest") ? "model_digest" : "digest"] = weights_digest(model);
  }
  return result;
}

Json inspect_llama2c(const Path& file) {
  Json result = begin("llama2c");
  const auto parsed = llama::read_llama2c(file);
  for (const auto& tensor : parsed.tensors) add_tensor(result, tensor.name, "F32", tensor.shape);
  result["version"] = parsed.version;
  return result;
}

/// Lists of keys' values may hold a whole vocabulary: only short ones are shown.
Json shown(const formats::GgufValue& value) {
  constexpr size_t kShownItems = 16;
  return std::visit(
      [](const auto& item) -> Json {
        using T = std::decay_t<decltype(item)>;
        if constexpr (std::is_same_v<T, std::string>) {
          return to_utf8(item);
        } else if constexpr (std::is_same_v<T, formats::GgufArray>) {
          if (item.items.size() > kShownItems) {
            return {{"type", formats::gguf_type_name(item.item_type)}, {"length", item.items.size()}};
          }
          Json list = Json::array();
          for (const auto& inner : item.items) list.push_back(shown(inner));
          return list;
        } else {
          return item;
        }
      },
      value.value);
}

Json inspect_gguf(const Path& file) {
  Json result = begin("gguf");
  const MappedFile mapped(file);
  const auto header = formats::parse_gguf(mapped.bytes(), file.string());
  for (const auto& tensor : header.tensors) add_tensor(result, tensor.name, formats::ggml_type_name(tensor.type), tensor.shape);
  result["version"] = header.version;
  result["metadata"] = Json::object();
  for (const auto& [key, value] : header.metadata) result["metadata"][key] = shown(value);
  result["digest"] = file_digest(file);
  return result;
}

/// Numbers of rows by their number of tokens, in up to `kBars` ranges of equal width.
Json length_histogram(const data::Dataset& rows, int64_t longest) {
  constexpr int64_t kBars = 16;
  const int64_t width = std::max<int64_t>((longest + kBars - 1) / kBars, 1);
  std::vector<int64_t> counts(static_cast<size_t>((longest - 1) / width + 1));
  for (int64_t row = 0; row < rows.size(); ++row) ++counts[static_cast<size_t>((rows.length(row) - 1) / width)];
  Json bars = Json::array();
  for (size_t i = 0; i < counts.size(); ++i) {
    const int64_t from = static_cast<int64_t>(i) * width + 1;
    bars.push_back({{"from", from}, {"to", std::min(from + width - 1, longest)}, {"rows", counts[i]}});
  }
  return bars;
}

Json inspect_records(const Path& directory) {
  const auto set = std::make_shared<const formats::RecordSet>(directory);
  const auto& header = set->header();
  return {{"kind", "records"},
          {"set", header.set},
          {"format", header.format},
          {"tokenizer", header.tokenizer},
          {"vocab_size", header.vocab_size},
          {"rows", header.rows},
          {"tokens", header.tokens},
          {"targets", header.targets},
          {"shortest", header.shortest},
          {"longest", header.longest},
          {"source_rows", header.source.rows},
          {"bad_rows", header.source.bad_rows},
          {"truncated", header.source.truncated},
          {"shards", header.shards.size()},
          {"lengths", length_histogram(data::Dataset(set), header.longest)}};
}

void print_histogram(const Json& bars) {
  constexpr int64_t kWidth = 50;
  int64_t most = 1;
  for (const Json& bar : bars) most = std::max(most, bar.at("rows").get<int64_t>());
  for (const Json& bar : bars) {
    const auto rows = bar.at("rows").get<int64_t>();
    fmt::print("  {:>6}-{:<6} {:<{}} {}\n", bar.at("from").get<int64_t>(), bar.at("to").get<int64_t>(),
               std::string(static_cast<size_t>((rows * kWidth + most - 1) / most), '#'), kWidth, rows);
  }
}

Json inspect_tokenizer(const Path& file) {
  const auto tokenizer = data::load_tokenizer(file);
  return {{"kind", "tokenizer"},           {"vocab_size", tokenizer->vocab_size()}, {"bos_id", tokenizer->bos_id()},
          {"eos_id", tokenizer->eos_id()}, {"pad_id", tokenizer->pad_id()},         {"digest", file_digest(file)}};
}

Json inspect(const Path& path) {
  require<IoError>(std::filesystem::exists(path), "[inspect] the path must exist; found nothing at {}", path.string());
  if (!std::filesystem::is_directory(path)) {
    if (path.extension() == ".safetensors") return inspect_safetensors(path);
    if (path.extension() == ".gguf") return inspect_gguf(path);
    if (path.extension() == ".model") return inspect_tokenizer(path);
    if (path.extension() == ".bin") return inspect_llama2c(path);
    fail<FormatError>("[inspect] {} must be a .safetensors, .gguf, .model (SentencePiece) or llama2.c .bin file, or a directory",
                      path.string());
  }
  if (std::filesystem::exists(path / formats::kRecordHeaderFile)) return inspect_records(path);
  if (std::filesystem::exists(path / "adapter_config.json")) return inspect_adapter(path);
  if (std::filesystem::exists(path / "manifest.json")) return inspect_checkpoint(path);
  if (std::filesystem::exists(path / "config.json")) return inspect_model(path);
  if (std::filesystem::exists(path / "config.yaml")) return inspect_run(path);
  fail<FormatError>(
      "[inspect] {} must be a model, adapter, checkpoint, run or records directory; it has none of config.json, "
      "records.json, adapter_config.json, manifest.json, config.yaml",
      path.string());
}

void print_table(const Json& result) {
  for (const auto& [key, value] : result.items()) {
    if (key == "tensors" || key == "config" || key == "adapter" || key == "lengths") continue;
    fmt::print("{:<20}{}\n", key, value.is_string() ? value.get<std::string>() : value.dump());
  }
  if (result.contains("adapter")) {
    for (const auto& [key, value] : result.at("adapter").items()) {
      if (key != "update_norms") fmt::print("{:<20}{}\n", key, value.is_string() ? value.get<std::string>() : value.dump());
    }
    for (const auto& [module, norm] : result.at("adapter").at("update_norms").items()) {
      fmt::print("  |update| {:<60}{:.6g}\n", module, norm.get<double>());
    }
  }
  if (result.contains("lengths")) print_histogram(result.at("lengths"));
  if (!result.contains("tensors")) return;
  for (const Json& tensor : result.at("tensors")) {
    fmt::print("  {:<72}{:<6}[{}]\n", tensor.at("name").get<std::string>(), tensor.at("dtype").get<std::string>(),
               fmt::join(tensor.at("shape").get<std::vector<int64_t>>(), ", "));
  }
}

int InspectCommand::run() const {
  Json result = inspect(path);
  result["path"] = path;
  if (json) {
    fmt::print("{}\n", result.dump());
  } else {
    print_table(result);
  }
  return kDone;
}

}  // namespace

void add_inspect_command(CLI::App& program, Action& action) {
  auto* command = program.add_subcommand("inspect", "What a file or directory is");
  command->footer("Example: lora inspect out/adapter");
  auto state = std::make_shared<InspectCommand>();
  command->add_option("path", state->path, "File or directory")->required();
  command->add_flag("--json", state->json, "Print one JSON object");
  add_log_options(*command);
  command->callback([state, &action] { action = [state] { return state->run(); }; });
}

}  // namespace lora::cli
