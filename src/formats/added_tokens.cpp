#include "lora/formats/added_tokens.h"

#include <optional>
#include <set>

#include "core/check.h"
#include "formats/json.h"

namespace lora::formats {
namespace {

constexpr JsonLimits kLimits{.max_bytes = 256u << 20};

Json parse_object(std::string_view json, std::string_view where) {
  Json object = parse_json(json, where, kLimits);
  require<FormatError>(object.is_object(), "[{}] must be a JSON object; found {}", where, object.type_name());
  return object;
}

/// Which of the tokens a file lacks, by what it says of ids.
class Merge {
 public:
  Merge(const AddedTokens& tokens, std::string_view where) : tokens_(tokens), where_(where) {
    for (size_t i = 0; i < tokens.texts.size(); ++i) missing_.emplace(tokens.texts[i], tokens.first_id + static_cast<int64_t>(i));
  }

  /// The file has `text` as `id`.
  void found(const std::string& text, const Json& id) {
    require<FormatError>(id.is_number_integer(), "[{}] ids of tokens must be whole numbers; found {} for {:?}", where_,
                         id.type_name(), text);
    const auto number = id.get<int64_t>();
    const bool is_ours = number >= tokens_.first_id;
    const auto ours = missing_.find(text);
    require<FormatError>(
        ours != missing_.end() ? ours->second == number : !is_ours,
        "[{}] the vocabulary's next id must be {}, as tokenizer.model says; found {:?} as {}; name the tokens beyond "
        "tokenizer.model first, in the order of their ids, in the file of new tokens",
        where_, tokens_.first_id, text, number);
    if (ours != missing_.end()) present_.insert(text);
  }

  /// add(text, id) for each token that was not found, in the order of ids.
  template <class Add>
  void add_missing(Add add) const {
    for (size_t i = 0; i < tokens_.texts.size(); ++i) {
      if (!present_.contains(tokens_.texts[i])) add(tokens_.texts[i], tokens_.first_id + static_cast<int64_t>(i));
    }
  }

 private:
  const AddedTokens& tokens_;
  std::string_view where_;
  std::map<std::string, int64_t> missing_;
  std::set<std::string> present_;
};

/// As transformers adds a token: found in text as it stands, and no command to the model.
Json description(const std::string& text) {
  return {{"content", text}, {"lstrip", false},      {"normalized", false},
          {"rstrip", false}, {"single_word", false}, {"special", false}};
}

void require_shape(bool holds, std::string_view where, std::string_view what) {
  require<FormatError>(holds,
                       "[{}] must be a file of transformers; its {} is not as there; remove the file, and transformers reads "
                       "tokenizer.model alone",
                       where, what);
}

}  // namespace

std::string add_to_tokenizer_json(std::string_view json, const AddedTokens& tokens, std::string_view where) {
  Json root = parse_object(json, where);
  Merge merge(tokens, where);
  require_shape(root.contains("model") && root["model"].is_object() && root["model"].contains("vocab"), where, "model.vocab");
  const Json& vocabulary = root["model"]["vocab"];
  require_shape(vocabulary.is_object() || vocabulary.is_array(), where, "model.vocab");
  if (vocabulary.is_object()) {
    for (const auto& [text, id] : vocabulary.items()) merge.found(text, id);
  } else {
    require_shape(static_cast<int64_t>(vocabulary.size()) <= tokens.first_id, where,
                  "model.vocab, of more pieces than tokenizer.model has,");
  }
  Json& added = root["added_tokens"];
  if (added.is_null()) added = Json::array();
  require_shape(added.is_array(), where, "added_tokens");
  for (const auto& entry : added) {
    require_shape(entry.is_object() && entry.contains("content") && entry["content"].is_string() && entry.contains("id"), where,
                  "added_tokens");
    merge.found(entry["content"].get<std::string>(), entry["id"]);
  }
  merge.add_missing([&](const std::string& text, int64_t id) {
    Json entry = description(text);
    entry["id"] = id;
    added.push_back(std::move(entry));
  });
  return root.dump(2) + "\n";
}

std::string add_to_added_tokens_json(std::string_view json, const AddedTokens& tokens, std::string_view where) {
  Json root = parse_object(json, where);
  Merge merge(tokens, where);
  for (const auto& [text, id] : root.items()) merge.found(text, id);
  merge.add_missing([&](const std::string& text, int64_t id) { root[text] = id; });
  return root.dump(2) + "\n";
}

std::string add_to_tokenizer_config(std::string_view json, const AddedTokens& tokens, std::string_view where) {
  Json root = parse_object(json, where);
  if (!root.contains("added_tokens_decoder")) return std::string(json);
  Json& decoder = root["added_tokens_decoder"];
  require_shape(decoder.is_object(), where, "added_tokens_decoder");
  Merge merge(tokens, where);
  for (const auto& [id, entry] : decoder.items()) {
    const bool is_number = !id.empty() && id.size() < 10 && id.find_first_not_of("0123456789") == std::string::npos;
    require_shape(is_number && entry.is_object() && entry.contains("content") && entry["content"].is_string(), where,
                  "added_tokens_decoder");
    merge.found(entry["content"].get<std::string>(), Json(std::stoll(id)));
  }
  merge.add_missing([&](const std::string& text, int64_t id) { decoder[std::to_string(id)] = description(text); });
  return root.dump(2) + "\n";
}

}  // namespace lora::formats
