#include "core/check.h"
#include "formats/json.h"
#include "lora/core/file.h"
#include "lora/formats/records.h"

namespace lora::formats {
namespace {

constexpr int kVersion = 1;
constexpr size_t kMostShards = 1'000'000;

std::string digest_of(const Json& content) {
  const std::string text = content.dump();
  return digest(std::as_bytes(std::span(text)));
}

/// Reads an object's values, each of which must be there.
class Fields {
 public:
  Fields(const Json& object, std::string_view where) : object_(object), where_(where) {
    require<FormatError>(object.is_object(), "[{}] a record header must be made of objects; found {}", where_,
                         object.type_name());
  }

  const Json& at(const char* key) const {
    require<FormatError>(object_.contains(key), "[{}] a record header must have {}; it has not", where_, key);
    return object_.at(key);
  }
  int64_t count(const char* key) const {
    const Json& value = at(key);
    const bool fits = value.is_number_unsigned() && value.get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX);
    require<FormatError>(fits, "[{}] {} must be a whole number; found {}", where_, key, value.dump());
    return value.get<int64_t>();
  }
  std::string text(const char* key) const {
    const Json& value = at(key);
    require<FormatError>(value.is_string(), "[{}] {} must be a text; found {}", where_, key, value.type_name());
    return value.get<std::string>();
  }

 private:
  const Json& object_;
  std::string_view where_;
};

Json content_of(const RecordHeader& header) {
  Json shards = Json::array();
  for (const auto& shard : header.shards) {
    shards.push_back({{"rows", shard.rows}, {"tokens", shard.tokens}, {"index_digest", shard.index_digest}});
  }
  Json content = {{"version", kVersion},
                  {"set", header.set},
                  {"schema",
                   {{"tokens", "int32; the top bit is set where a token is no target"},
                    {"number", "int64; the row's place in the source, from 1"},
                    {"length", "uint32"},
                    {"target_start", "uint32; place of the first target"}}},
                  {"format", header.format},
                  {"tokenizer", header.tokenizer},
                  {"vocab_size", header.vocab_size},
                  {"statistics",
                   {{"rows", header.rows},
                    {"tokens", header.tokens},
                    {"targets", header.targets},
                    {"shortest", header.shortest},
                    {"longest", header.longest},
                    {"source_rows", header.source.rows},
                    {"bad_rows", header.source.bad_rows},
                    {"truncated", header.source.truncated}}},
                  {"shards", shards}};
  if (header.train_on_sop) content["train_on_sop"] = *header.train_on_sop;
  return content;
}

void check_sums(const RecordHeader& header, std::string_view where) {
  int64_t rows = 0, tokens = 0;
  for (const auto& shard : header.shards) {
    const bool fits = shard.rows > 0 && shard.tokens >= shard.rows && shard.tokens <= INT64_MAX - tokens;
    require<FormatError>(fits, "[{}] shards must have rows with tokens; found one with {} rows, {} tokens", where, shard.rows,
                         shard.tokens);
    rows += shard.rows;
    tokens += shard.tokens;
  }
  require<FormatError>(rows == header.rows && tokens == header.tokens && rows > 0,
                       "[{}] the shards must make up the set's {} rows, {} tokens; found {} and {}", where, header.rows,
                       header.tokens, rows, tokens);
  const bool are_possible =
      header.shortest >= 1 && header.shortest <= header.longest && header.longest <= tokens && header.targets <= tokens;
  require<FormatError>(are_possible,
                       "[{}] lengths and targets must be possible with {} tokens; found rows of {} to {}, and {} targets", where,
                       tokens, header.shortest, header.longest, header.targets);
}

}  // namespace

std::string record_header_text(const RecordHeader& header) {
  const Json content = content_of(header);
  return Json{{"kind", "lora records"}, {"digest", digest_of(content)}, {"content", content}}.dump(1) + "\n";
}

RecordHeader parse_record_header(std::string_view text, std::string_view where) {
  const Json json = parse_json(text, where);
  const Fields outer(json, where);
  require<FormatError>(outer.text("kind") == "lora records", "[{}] must be the header of a record set; it is of something else",
                       where);
  require<FormatError>(outer.text("digest") == digest_of(outer.at("content")),
                       "[{}] the header must have its digest; it is damaged; prepare the data again", where);
  const Fields content(outer.at("content"), where);
  require<FormatError>(content.count("version") == kVersion, "[{}] must be of version {}; found {}; prepare the data again",
                       where, kVersion, content.at("version").dump());
  RecordHeader header;
  header.set = content.text("set");
  header.format = content.text("format");
  header.tokenizer = content.text("tokenizer");
  header.vocab_size = content.count("vocab_size");
  if (const Json& all = outer.at("content"); all.contains("train_on_sop")) {
    const Json& value = all.at("train_on_sop");
    require<FormatError>(value.is_boolean(), "[{}] train_on_sop must be true or false; found {}", where, value.dump());
    header.train_on_sop = value.get<bool>();
  }
  const Fields statistics(content.at("statistics"), where);
  header.rows = statistics.count("rows");
  header.tokens = statistics.count("tokens");
  header.targets = statistics.count("targets");
  header.shortest = statistics.count("shortest");
  header.longest = statistics.count("longest");
  header.source = {.rows = static_cast<uint64_t>(statistics.count("source_rows")),
                   .bad_rows = static_cast<uint64_t>(statistics.count("bad_rows")),
                   .truncated = static_cast<uint64_t>(statistics.count("truncated"))};
  const Json& shards = content.at("shards");
  require<FormatError>(shards.is_array() && shards.size() <= kMostShards, "[{}] shards must be a list; found {}", where,
                       shards.type_name());
  for (const Json& item : shards) {
    const Fields shard(item, where);
    header.shards.push_back({shard.count("rows"), shard.count("tokens"), shard.text("index_digest")});
  }
  check_sums(header, where);
  return header;
}

}  // namespace lora::formats
