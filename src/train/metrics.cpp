#include "lora/train/metrics.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string_view>
#include <system_error>
#include <utility>

#include "core/check.h"
#include "formats/json.h"
#include "lora/core/file.h"
#include "lora/core/log.h"
#include "lora/core/text.h"

namespace lora::train {
namespace {

using formats::Json;

/// Reads the fields of one line. `where` opens the messages of errors.
class LineFields {
 public:
  LineFields(std::string_view line, std::string where) : where_(std::move(where)), object_(formats::parse_json(line, where_)) {
    require<FormatError>(object_.is_object(), "[{}] must be a JSON object; found {}", where_, object_.type_name());
  }

  bool has(const char* key) const { return object_.contains(key); }
  double number(const char* key) const {
    const Json& value = field(key);
    if (value.is_null()) return std::numeric_limits<double>::quiet_NaN();
    require<FormatError>(value.is_number(), "[{}] {} must be a number or null; found {}", where_, key, value.type_name());
    return value.get<double>();
  }
  int64_t count(const char* key) const {
    const Json& value = field(key);
    require<FormatError>(value.is_number_integer() && value >= 0, "[{}] {} must be a whole number of at least 0; found {}",
                         where_, key, value.dump(-1, ' ', false, Json::error_handler_t::replace));
    return value.get<int64_t>();
  }
  std::vector<int64_t> counts(const char* key) const {
    const Json& value = field(key);
    require<FormatError>(
        value.is_array() && std::all_of(value.begin(), value.end(), [](const Json& item) { return item.is_number_unsigned(); }),
        "[{}] {} must be a list of whole numbers of at least 0; found {}", where_, key, value.type_name());
    return value.get<std::vector<int64_t>>();
  }
  bool boolean(const char* key) const {
    const Json& value = field(key);
    require<FormatError>(value.is_boolean(), "[{}] {} must be true or false; found {}", where_, key, value.type_name());
    return value.get<bool>();
  }
  std::string text(const char* key) const {
    const Json& value = field(key);
    require<FormatError>(value.is_string(), "[{}] {} must be text; found {}", where_, key, value.type_name());
    return value.get<std::string>();
  }

 private:
  const Json& field(const char* key) const {
    const auto found = object_.find(key);
    require<FormatError>(found != object_.end(), "[{}] must have the field {}; found none; was it written by `lora train`?",
                         where_, key);
    return *found;
  }

  std::string where_;
  Json object_;
};

StepResult from_json_line(std::string_view line, std::string where) {
  const LineFields fields(line, std::move(where));
  StepResult result;
  result.step = fields.count("step");
  result.epoch = fields.count("epoch");
  result.loss = fields.number("loss");
  if (fields.has("reg_loss")) result.reg_loss = fields.number("reg_loss");
  result.learning_rate = fields.number("lr");
  result.grad_norm = fields.number("grad_norm");
  result.loss_scale = fields.number("loss_scale");
  result.overflow = fields.boolean("overflow");
  result.tokens = fields.count("tokens");
  result.targets = fields.count("targets");
  result.step_seconds = fields.number("step_seconds");
  result.data_seconds = fields.number("data_seconds");
  if (fields.has("data_read_seconds")) {
    result.data_read_seconds = fields.number("data_read_seconds");
    result.data_transform_seconds = fields.number("data_transform_seconds");
    result.copy_seconds = fields.number("copy_seconds");
  }
  result.tokens_per_second = fields.number("tokens_per_second");
  if (fields.has("sol_percent")) result.sol_percent = fields.number("sol_percent");
  result.peak_bytes = static_cast<uint64_t>(fields.count("peak_memory_bytes"));
  if (fields.has("rank_budget")) result.rank_budget = fields.count("rank_budget");
  if (fields.has("ranks")) result.ranks = fields.counts("ranks");
  if (fields.has("eval_loss")) result.eval_loss = fields.number("eval_loss");
  if (fields.has("best")) result.is_best = fields.boolean("best");
  if (fields.has("nonfinite")) result.nonfinite = fields.text("nonfinite");
  return result;
}

/// Calls `visit(line without its end, its StepResult)` for every line of a metrics file's content.
/// A last line without an end that does not read is what a killed process left: it is skipped.
template <class Visit>
void for_each_line(const Path& path, std::string_view content, Visit visit) {
  for (int64_t number = 1; !content.empty(); ++number) {
    const size_t end = content.find('\n');
    const bool is_complete = end != std::string_view::npos;
    const std::string_view line = content.substr(0, end);
    content.remove_prefix(is_complete ? end + 1 : content.size());
    StepResult result;
    try {
      result = from_json_line(line, fmt::format("{} line {}", path.string(), number));
    } catch (const FormatError&) {
      if (is_complete) throw;
      return;
    }
    visit(line, std::move(result));
  }
}

void drop_lines_after(const Path& path, int64_t last_step) {
  require_writable(path.has_parent_path() ? path.parent_path() : Path("."));
  std::error_code unreachable;
  std::string kept;
  int64_t steps = 0;
  if (last_step > 0 && std::filesystem::exists(path, unreachable)) {
    for_each_line(path, read_file(path), [&](std::string_view line, const StepResult& result) {
      if (result.step > last_step) return;
      kept.append(line) += '\n';
      ++steps;
    });
  }
  if (steps != last_step) {
    log::warn(
        fmt::format("[{}] must hold the steps 1 to {} that are already done; found {} of "
                    "them; the curves will have a gap",
                    path.string(), last_step, steps));
  }
  write_file_atomically(path, kept);
}

}  // namespace

std::string to_json_line(const StepResult& result) {
  // nlohmann writes the shortest digits that read back as the same double, and null for NaN and
  // infinities, which JSON has no numbers for.
  formats::OrderedJson line;
  line["step"] = result.step;
  line["epoch"] = result.epoch;
  line["loss"] = result.loss;
  if (result.reg_loss) line["reg_loss"] = *result.reg_loss;
  line["lr"] = result.learning_rate;
  line["grad_norm"] = result.grad_norm;
  line["loss_scale"] = result.loss_scale;
  line["overflow"] = result.overflow;
  line["tokens"] = result.tokens;
  line["targets"] = result.targets;
  line["step_seconds"] = result.step_seconds;
  line["data_seconds"] = result.data_seconds;
  line["data_read_seconds"] = result.data_read_seconds;
  line["data_transform_seconds"] = result.data_transform_seconds;
  line["copy_seconds"] = result.copy_seconds;
  line["tokens_per_second"] = result.tokens_per_second;
  if (result.sol_percent) line["sol_percent"] = *result.sol_percent;
  line["peak_memory_bytes"] = result.peak_bytes;
  if (result.rank_budget) line["rank_budget"] = *result.rank_budget;
  if (!result.ranks.empty()) line["ranks"] = result.ranks;
  if (result.eval_loss) line["eval_loss"] = *result.eval_loss;
  if (result.is_best) line["best"] = true;
  if (!result.nonfinite.empty()) line["nonfinite"] = to_utf8(result.nonfinite);
  return line.dump();
}

MetricsFile::MetricsFile(const Path& path, int64_t last_step) : path_(path) { drop_lines_after(path, last_step); }

void MetricsFile::write(const StepResult& result) { OutputFile(path_, /*append=*/true).write(to_json_line(result) + '\n'); }

std::vector<StepResult> MetricsFile::read(const Path& path) {
  std::vector<StepResult> steps;
  for_each_line(path, read_file(path), [&](std::string_view, StepResult result) { steps.push_back(std::move(result)); });
  return steps;
}

}  // namespace lora::train
