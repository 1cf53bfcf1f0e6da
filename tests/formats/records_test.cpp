#include "lora/formats/records.h"

#include <fmt/format.h>

#include <cstring>
#include <map>

#include "lora/core/error.h"
#include "lora/core/file.h"
#include "support.h"

using namespace lora;
using namespace lora::formats;

namespace {

const std::string kSet = "0123456789abcdef0123456789abcdef", kOther = "fedcba9876543210fedcba9876543210";

struct Row {
  int64_t number;
  std::vector<int32_t> tokens;
};

/// Row i has i % 5 + 1 tokens of which the first is masked, and every seventh number is missing.
std::vector<Row> many_rows(int64_t count) {
  std::vector<Row> rows;
  for (int64_t i = 0; i < count; ++i) {
    Row row{.number = i + 1 + i / 6, .tokens = {static_cast<int32_t>(i % 50) | kMaskedToken}};
    for (int64_t k = 0; k < i % 5; ++k) row.tokens.push_back(static_cast<int32_t>((i + k) % 90));
    rows.push_back(std::move(row));
  }
  return rows;
}

SourceCounts counts_at(const Row& row) {
  return {.rows = static_cast<uint64_t>(row.number), .bad_rows = static_cast<uint64_t>(row.number) / 7, .truncated = 0};
}

const RecordWriter::Options kSmall = {.set = kSet, .shard_bytes = 400, .block_bytes = 100};

/// Adds rows until `stop` of them are there; a writer that was cut off is one that is not finished.
void write(const Path& directory, const std::vector<Row>& rows, size_t stop, const RecordWriter::Options& options = kSmall) {
  RecordWriter writer(directory, options);
  for (auto i = static_cast<size_t>(writer.num_rows()); i < std::min(stop, rows.size()); ++i) {
    writer.add(rows[i].tokens, rows[i].number, counts_at(rows[i]));
  }
  if (stop >= rows.size()) {
    writer.finish({.format = "tokens", .tokenizer = "t", .vocab_size = 100}, counts_at(rows.back()));
  }
}

std::map<std::string, std::string> files_of(const Path& directory) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(directory))
    files[entry.path().filename().string()] = read_file(entry.path());
  return files;
}

/// Every value of a set: a bound that was not checked shows under the sanitizers.
std::vector<Row> read_all(const RecordSet& set) {
  std::vector<Row> rows;
  for (const auto& shard : set.shards()) {
    int64_t begin = 0;
    for (size_t i = 0; i < shard.ends.size(); ++i) {
      const auto tokens = shard.tokens.subspan(static_cast<size_t>(begin), static_cast<size_t>(shard.ends[i] - begin));
      rows.push_back({shard.numbers[i], {tokens.begin(), tokens.end()}});
      begin = shard.ends[i];
    }
  }
  return rows;
}

void check_equal(const std::vector<Row>& a, const std::vector<Row>& b) {
  REQUIRE(a.size() == b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    CHECK(a[i].number == b[i].number);
    CHECK(a[i].tokens == b[i].tokens);
  }
}

void replace(const Path& file, const std::string& text) { std::ofstream(file, std::ios::binary) << text; }

}  // namespace

TEST_CASE("record files give back the rows that were written", "[formats][records]") {
  const testing::ScratchFolder folder;
  const auto rows = many_rows(200);
  write(folder / "set", rows, 200);
  const RecordSet set(folder / "set", 100);
  check_equal(read_all(set), rows);

  const auto& header = set.header();
  CHECK(header.rows == 200);
  CHECK(header.tokens == 600);   // lengths 1 to 5, 40 times each
  CHECK(header.targets == 400);  // all but the first token
  CHECK(header.shortest == 1);
  CHECK(header.longest == 5);
  CHECK(header.source == counts_at(rows.back()));
  CHECK(header.shards.size() > 3);
  for (size_t i = 0; i < header.shards.size(); ++i) {
    CHECK(std::filesystem::file_size(record_data_file(folder / "set", i)) <= 400);
    CHECK(set.shards()[i].target_starts[0] == std::min<int64_t>(1, set.shards()[i].ends[0]));
  }
  CHECK(parse_record_header(record_header_text(header), "h") == header);
}

TEST_CASE("a writer that is cut off anywhere goes on to the same files", "[formats][records]") {
  const testing::ScratchFolder folder;
  const auto rows = many_rows(120);
  write(folder / "whole", rows, 120);
  const auto expected = files_of(folder / "whole");
  for (size_t stop = 0; stop < 120; stop += 7) {
    const Path directory = folder / fmt::format("cut{}", stop);
    write(directory, rows, stop);
    write(directory, rows, std::min<size_t>(stop + 20, 119));
    write(directory, rows, 120);
    CHECK(files_of(directory) == expected);
  }
}

TEST_CASE("what a killed writer left half written is written again", "[formats][records]") {
  const testing::ScratchFolder folder;
  const auto rows = many_rows(60);
  write(folder / "whole", rows, 60);
  const auto expected = files_of(folder / "whole");
  write(folder / "part", rows, 60);
  std::filesystem::remove(folder / "part/records.json");
  const auto part = files_of(folder / "part");
  const std::string data = fmt::format("shard-{:05}.records", 1), index = fmt::format("shard-{:05}.index", 1);
  const auto goes_on = [&](const std::string& name, const std::string& text) {
    for (const auto& [file, content] : part) replace(folder / ("part/" + file), content);
    replace(folder / ("part/" + name), text);
    write(folder / "part", rows, 60);
    const bool is_equal = files_of(folder / "part") == expected;
    std::filesystem::remove(folder / "part/records.json");
    return is_equal;
  };
  for (const std::string& name : {data, index}) {
    const std::string& content = part.at(name);
    for (size_t size = 0; size < content.size(); size += 13) CHECK(goes_on(name, content.substr(0, size)));
    CHECK(goes_on(name, content + "garbage"));
    for (size_t at = 64; at < content.size(); at += 13) {
      std::string damaged = content;
      damaged[at] ^= 1;
      CHECK(goes_on(name, damaged));
    }
  }
}

TEST_CASE("directories that hold something else are left alone", "[formats][records]") {
  const testing::ScratchFolder folder;
  const auto rows = many_rows(30);
  write(folder / "set", rows, 20);
  auto other = kSmall;
  other.set = kOther;
  CHECK_THROWS_AS(RecordWriter(folder / "set", other), ConfigError);
  write(folder / "set", rows, 30);
  CHECK_THROWS_AS(RecordWriter(folder / "set", kSmall), ConfigError);
  check_equal(read_all(RecordSet(folder / "set")), rows);
  const RecordWriter first(folder / "locked", kSmall);
  CHECK_THROWS_AS(RecordWriter(folder / "locked", kSmall), IoError);
  CHECK_THROWS_AS(RecordSet(folder / "locked"), IoError);
  auto bad = kSmall;
  bad.set = "short";
  RecordWriter writer(folder / "bad", bad);
  writer.add(std::vector<int32_t>{1}, 1, {});
  CHECK_THROWS_AS(writer.finish({}, {}), ConfigError);
  CHECK_THROWS_AS(writer.add(std::vector<int32_t>{1}, 1, {}), DataError);
  CHECK_THROWS_AS(writer.add(std::vector<int32_t>{}, 2, {}), DataError);
}

TEST_CASE("parts of a set are its rows, each once", "[formats][records]") {
  const testing::ScratchFolder folder;
  const auto rows = many_rows(50);
  write(folder / "set", rows, 50);
  for (const int64_t parts : {1, 2, 3, 7, 50, 60}) {
    std::vector<Row> joined;
    for (int64_t part = 0; part < parts; ++part) {
      const RecordSet set(folder / "set", 0, {part, parts});
      const auto of_shards = read_all(set);
      CHECK(set.num_rows() >= 50 / parts);
      CHECK(set.num_rows() <= 50 / parts + 1);
      for (int64_t i = 0; i < set.num_rows(); ++i) joined.push_back(of_shards[static_cast<size_t>(set.first_row() + i)]);
    }
    check_equal(joined, rows);
  }
  CHECK_THROWS_AS(RecordSet(folder / "set", 0, {2, 2}), ConfigError);
  CHECK_THROWS_AS(RecordSet(folder / "set", 0, {0, 0}), ConfigError);
}

TEST_CASE("every flipped byte and every cut of a set is noticed, by its name", "[formats][records]") {
  const testing::ScratchFolder folder;
  write(folder / "set", many_rows(40), 40);
  for (const auto& [name, content] : files_of(folder / "set")) {
    const Path file = folder / ("set/" + name);
    const auto refused = [&](const std::string& text) {
      replace(file, text);
      try {
        read_all(RecordSet(folder / "set", 100));
      } catch (const Error& error) {
        return std::string(error.what()).find(Path(name).stem()) != std::string::npos;
      }
      return false;
    };
    INFO(name);
    for (size_t at = 0; at < content.size(); ++at) {
      // White space between the values of the header is no content.
      if (name == kRecordHeaderFile && std::string_view(" \n").find(content[at]) != std::string_view::npos) continue;
      std::string damaged = content;
      damaged[at] ^= 0x10;
      INFO(at);
      CHECK(refused(damaged));
    }
    for (size_t size = 0; size + 1 < content.size(); size += 3) CHECK(refused(content.substr(0, size)));
    if (name != kRecordHeaderFile) CHECK(refused(content + std::string(4, '\0')));
    replace(file, content);
  }
  CHECK_NOTHROW(RecordSet(folder / "set", 100));
}

TEST_CASE("files of other sets, other places and other vocabularies are refused", "[formats][records]") {
  const testing::ScratchFolder folder;
  const auto rows = many_rows(60);
  write(folder / "set", rows, 60);
  const auto files = files_of(folder / "set");
  const auto message = [&](int64_t vocab_size = 100) {
    return testing::message_of<FormatError>([&] { RecordSet(folder / "set", vocab_size); });
  };
  CHECK(message(60).find("vocabulary of 60") != std::string::npos);

  auto other = kSmall;
  other.set = kOther;
  write(folder / "other", rows, 60, other);
  std::filesystem::copy_file(folder / "other/shard-00001.records", folder / "set/shard-00001.records",
                             std::filesystem::copy_options::overwrite_existing);
  CHECK(message().find("shard-00001.records] a record file must belong to its set") != std::string::npos);

  replace(folder / "set/shard-00001.records", files.at("shard-00000.records"));
  CHECK(message().find("must be shard 1 of its set; found 0") != std::string::npos);
  replace(folder / "set/shard-00001.records", files.at("shard-00001.records"));

  const size_t shards = RecordSet(folder / "set").header().shards.size();
  replace(record_data_file(folder / "set", shards), files.at("shard-00000.records"));
  CHECK(message().find("one more") != std::string::npos);
  std::filesystem::remove(record_data_file(folder / "set", shards));

  std::filesystem::remove(folder / "set/shard-00001.index");
  CHECK(testing::message_of<IoError>([&] { RecordSet(folder / "set"); }).find("shard-00001.index") != std::string::npos);
}

TEST_CASE("files that lie about themselves under right digests are refused", "[formats][records]") {
  // One block: head 64 bytes, block 96 (digest 32, tokens' digest 32, rows, tokens, counts), rows of 16.
  const testing::ScratchFolder folder;
  write(folder / "set", {{1, {1, 2}}, {5, {3}}}, 2, {.set = kSet});
  const std::string data = read_file(folder / "set/shard-00000.records"), index = read_file(folder / "set/shard-00000.index");
  REQUIRE(index.size() == 64 + 96 + 32);
  const auto refused = [&](size_t at, auto value) {
    std::string changed = index;
    std::memcpy(changed.data() + at, &value, sizeof(value));
    const std::string digest_now = digest(std::as_bytes(std::span(changed)).subspan(64 + 32));
    std::memcpy(changed.data() + 64, digest_now.data(), 32);
    std::vector<uint64_t> aligned(data.size() / 8 + 1);
    std::memcpy(aligned.data(), data.data(), data.size());
    const auto bytes = std::as_bytes(std::span(aligned)).first(data.size());
    return testing::message_of<FormatError>([&] {
      parse_record_shard(bytes, std::as_bytes(std::span(changed)), {kSet, 0}, 0, "d", "i");
    });
  };
  for (const uint32_t rows : {0u, 1u, 3u, 0xffffffffu}) refused(64 + 64, rows);
  for (const uint32_t tokens : {0u, 2u, 4u, 0xffffffffu}) refused(64 + 68, tokens);
  CHECK(refused(64 + 96, int64_t{0}).find("[i] a record file must have rows in order at byte 160") != std::string::npos);
  refused(64 + 96, int64_t{5});
  refused(64 + 96 + 16, int64_t{-1});
  for (const uint32_t length : {0u, 1u, 3u, 0xffffffffu}) refused(64 + 96 + 8, length);
  refused(64 + 96 + 12, uint32_t{3});
}

TEST_CASE("no row is longer or shorter than the header says", "[formats][records]") {
  const testing::ScratchFolder folder;
  write(folder / "set", many_rows(20), 20);
  const Path file = folder / "set/records.json";
  const RecordHeader header = parse_record_header(read_file(file), "h");
  for (const auto& [shortest, longest] : {std::pair<int64_t, int64_t>{1, 4}, {2, 5}}) {
    RecordHeader lying = header;
    lying.shortest = shortest;
    lying.longest = longest;
    replace(file, record_header_text(lying));
    CHECK(testing::message_of<FormatError>([&] { RecordSet(folder / "set"); }).find("tokens, as records.json says") != std::string::npos);
  }
}

TEST_CASE("a file of a shard that the set has not is noticed, and what a set was made with is kept", "[formats][records]") {
  const testing::ScratchFolder folder;
  write(folder / "set", many_rows(40), 40);
  CHECK_NOTHROW(RecordSet(folder / "set"));
  for (const char* name : {"shard-00999.index", "shard-00999.records"}) {
    replace(folder / "set" / name, "");
    CHECK_THROWS_AS(RecordSet(folder / "set"), FormatError);
    std::filesystem::remove(folder / "set" / name);
  }
  RecordHeader header = RecordSet(folder / "set").header();
  CHECK(!header.train_on_sop);
  header.train_on_sop = true;
  CHECK(parse_record_header(record_header_text(header), "h") == header);
}
