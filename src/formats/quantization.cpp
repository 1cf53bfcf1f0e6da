#include "lora/formats/quantization.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "core/check.h"
#include "formats/json.h"
#include "lora/core/error.h"

namespace lora::formats {
namespace {

constexpr int64_t kLargestDimension = int64_t{1} << 31;
constexpr size_t kLargestStateBytes = 1 << 16;
constexpr std::string_view kNestedPrefix = "nested_";

/// Typed fields of one object, with messages that name the place and the key.
class Fields {
 public:
  Fields(const Json& object, std::string_view where) : object_(object), where_(where) {
    require<FormatError>(object.is_object(), "[{}] the text must be a JSON object; found {}", where, shown(object));
  }

  bool has(const std::string& key) const { return object_.contains(key) && !object_.at(key).is_null(); }
  const Json& needed(const std::string& key) const {
    require<FormatError>(object_.contains(key), "[{}] {} must be there; found only {}", where_, key, fmt::join(keys(), ", "));
    return object_.at(key);
  }
  std::string text(const std::string& key) const {
    const Json& value = needed(key);
    check(value.is_string(), key, "a text", value);
    return value.get<std::string>();
  }
  bool boolean(const std::string& key, bool otherwise) const {
    if (!has(key)) return otherwise;
    const Json& value = object_.at(key);
    check(value.is_boolean(), key, "true or false", value);
    return value.get<bool>();
  }
  int64_t block_size(const std::string& key) const {
    const Json& value = needed(key);
    const bool fits = value.is_number_unsigned() && value.get<uint64_t>() <= INT32_MAX;
    check(fits && is_quantized_block_size(value.get<int64_t>()), key, "a power of two from 32 to 4096", value);
    return value.get<int64_t>();
  }
  DType dtype(const std::string& key) const {
    const std::string name = text(key);
    for (const DType type : {DType::kF32, DType::kBF16, DType::kF16}) {
      if (name == torch_name(type)) return type;
    }
    fail<FormatError>("[{}] {} must be float32, bfloat16 or float16; found {:?}", where_, key, name);
  }
  QuantizedType four_bit_type(const std::string& key) const {
    const std::string name = text(key);
    const auto type = quantized_type_from(name);
    require<FormatError>(type && bits_of(*type) == 4, "[{}] {} must be nf4 or fp4; found {:?}", where_, key, name);
    return *type;
  }
  std::vector<std::string> texts(const std::string& key) const {
    const Json& list = needed(key);
    check(list.is_array(), key, "a list of texts", list);
    std::vector<std::string> values;
    for (const Json& item : list) {
      check(item.is_string(), key, "a list of texts", list);
      values.push_back(item.get<std::string>());
    }
    return values;
  }
  std::vector<std::string> keys() const {
    std::vector<std::string> names;
    for (const auto& [key, value] : object_.items()) names.push_back(key);
    return names;
  }
  void check(bool holds, const std::string& key, std::string_view what, const Json& found) const {
    if (!holds) fail<FormatError>("[{}] {} must be {}; found {}; fetch the file again", where_, key, what, shown(found));
  }

 private:
  static std::string shown(const Json& value) { return value.dump().substr(0, 80); }

  const Json& object_;
  std::string_view where_;
};

std::vector<int64_t> read_shape(const Fields& fields) {
  const Json& list = fields.needed("shape");
  constexpr std::string_view kMust = "a list of two sizes";
  fields.check(list.is_array() && list.size() == 2, "shape", kMust, list);
  std::vector<int64_t> shape;
  for (const Json& size : list) {
    const bool fits = size.is_number_unsigned() && size.get<uint64_t>() >= 1 && size.get<uint64_t>() <= kLargestDimension;
    fields.check(fits, "shape", kMust, list);
    shape.push_back(size.get<int64_t>());
  }
  return shape;
}

std::optional<QuantState::Nested> read_nested(const Fields& fields) {
  const auto keys = fields.keys();
  const auto is_nested = [](const std::string& key) { return key.starts_with(kNestedPrefix); };
  if (std::ranges::none_of(keys, is_nested)) return std::nullopt;
  QuantState::Nested nested;
  nested.block_size = fields.block_size("nested_blocksize");
  nested.dtype = fields.dtype("nested_dtype");
  const Json& offset = fields.needed("nested_offset");
  const bool is_finite = offset.is_number() && std::isfinite(static_cast<float>(offset.get<double>()));
  fields.check(is_finite, "nested_offset", "a finite number", offset);
  nested.offset = offset.get<double>();
  return nested;
}

/// As Python writes a float: always with a point or an exponent.
std::string python_number(double value) {
  std::string text = fmt::format("{}", value);
  if (text.find_first_of(".en") == std::string::npos) text += ".0";
  return text;
}

void check_method(const Fields& fields, std::string_view where) {
  if (!fields.has("quant_method")) return;  // old files name it by their keys alone
  const std::string method = fields.text("quant_method");
  require<FormatError>(method == "bitsandbytes",
                       "[{}] quantization_config.quant_method must be bitsandbytes: the weights of other methods are stored in "
                       "their own ways; found {:?}; take the model in full precision and set adapter.quantization, or one "
                       "that bitsandbytes quantised",
                       where, method);
}

}  // namespace

QuantState parse_quant_state(std::string_view json, std::string_view where) {
  const Json object = parse_json(json, where, {.max_depth = 4, .max_bytes = kLargestStateBytes});
  const Fields fields(object, where);
  constexpr std::array kKnown = {"quant_type",       "blocksize",    "dtype",        "shape",
                                 "nested_blocksize", "nested_dtype", "nested_offset"};
  for (const std::string& key : fields.keys()) {
    require<FormatError>(std::ranges::find(kKnown, key) != kKnown.end(), "[{}] the keys must be {}; found {:?}", where,
                         fmt::join(kKnown, ", "), key);
  }
  QuantState state;
  state.type = fields.four_bit_type("quant_type");
  state.block_size = fields.block_size("blocksize");
  state.dtype = fields.dtype("dtype");
  state.shape = read_shape(fields);
  state.nested = read_nested(fields);
  return state;
}

std::string write_quant_state(const QuantState& state) {
  std::string text = fmt::format(R"({{"quant_type": "{}", "blocksize": {}, "dtype": "{}", "shape": [{}])", name_of(state.type),
                                 state.block_size, torch_name(state.dtype), fmt::join(state.shape, ", "));
  if (state.nested) {
    text += fmt::format(R"(, "nested_blocksize": {}, "nested_dtype": "{}", "nested_offset": {})", state.nested->block_size,
                        torch_name(state.nested->dtype), python_number(state.nested->offset));
  }
  return text + "}";
}

bool QuantizationConfig::skips(std::string_view module) const {
  if (!skip_modules) return module.ends_with("lm_head");
  return std::ranges::any_of(*skip_modules, [&](const std::string& name) {
    return module == name || module.starts_with(name + ".") || module.ends_with("." + name);
  });
}

QuantizationConfig parse_quantization_config(std::string_view json, std::string_view where) {
  const Json object = parse_json(json, where);
  const Fields fields(object, where);
  check_method(fields, where);
  const auto either = [&](const std::string& key) { return fields.boolean(key, false) || fields.boolean("_" + key, false); };
  const bool in_4bit = either("load_in_4bit"), in_8bit = either("load_in_8bit");
  require<FormatError>(in_4bit != in_8bit,
                       "[{}] quantization_config must say load_in_4bit or load_in_8bit; found {}; take a model that "
                       "bitsandbytes quantised, or one in full precision",
                       where, in_4bit ? "both" : "neither");
  QuantizationConfig config;
  config.bits = in_4bit ? 4 : 8;
  config.type = QuantizedType::kInt8;
  if (in_4bit) {
    config.type = fields.has("bnb_4bit_quant_type") ? fields.four_bit_type("bnb_4bit_quant_type") : QuantizedType::kFp4;
    config.double_quantized = fields.boolean("bnb_4bit_use_double_quant", false);
  }
  if (fields.has("bnb_4bit_compute_dtype")) config.compute_dtype = fields.dtype("bnb_4bit_compute_dtype");
  if (fields.has("llm_int8_skip_modules")) config.skip_modules = fields.texts("llm_int8_skip_modules");
  return config;
}

std::string write_quantization_config(const QuantizationConfig& config) {
  const bool in_4bit = config.bits == 4;
  const Json object = {{"_load_in_4bit", in_4bit},
                       {"_load_in_8bit", !in_4bit},
                       {"bnb_4bit_compute_dtype", torch_name(config.compute_dtype)},
                       {"bnb_4bit_quant_storage", "uint8"},
                       {"bnb_4bit_quant_type", in_4bit ? name_of(config.type) : "fp4"},
                       {"bnb_4bit_use_double_quant", config.double_quantized},
                       {"llm_int8_enable_fp32_cpu_offload", false},
                       {"llm_int8_has_fp16_weight", false},
                       {"llm_int8_skip_modules", config.skip_modules ? Json(*config.skip_modules) : Json()},
                       {"llm_int8_threshold", 6.0},
                       {"load_in_4bit", in_4bit},
                       {"load_in_8bit", !in_4bit},
                       {"quant_method", "bitsandbytes"}};
  return object.dump(2);
}

}  // namespace lora::formats
