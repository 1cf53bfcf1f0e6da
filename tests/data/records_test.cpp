#include "lora/data/records.h"

#include <algorithm>
#include <map>

#include <fmt/format.h>

#include "data/small_tokenizer.h"
#include "lora/core/error.h"
#include "lora/core/file.h"
#include "lora/data/loader.h"

using namespace lora;

namespace {

struct Stop {};

/// Adgen rows, every seventh of which is bad.
std::string source_text(int rows) {
  std::string text;
  for (int row = 1; row <= rows; ++row) {
    text += row % 7 == 0 ? std::string("{\"content\": \"\"}\n")
                         : fmt::format("{{\"content\": \"ask {}\", \"summary\": \"{}\"}}\n", row,
                                       std::string(static_cast<size_t>(row % 20 + 1), 'x'));
  }
  return text;
}

class NamedByteTokenizer : public testing::ByteTokenizer {
 public:
  explicit NamedByteTokenizer(std::string name) : name_(std::move(name)) {}
  std::string fingerprint() const override { return name_; }

 private:
  std::string name_;
};

const NamedByteTokenizer kTokenizer("bytes");

data::RecordOptions options() {
  return {.rows = {.max_source_length = 12, .max_target_length = 9, .skip_bad_rows = true, .vocab_size = 259},
          .shard_bytes = 20000};
}

std::map<std::string, std::string> files_of(const Path& directory) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(directory))
    files[entry.path().filename().string()] = read_file(entry.path());
  return files;
}

void check_equal(const data::Dataset& a, const data::Dataset& b) {
  REQUIRE(a.size() == b.size());
  for (int64_t row = 0; row < a.size(); ++row) {
    const auto x = a.example(row), y = b.example(row);
    CHECK(x.input_ids == y.input_ids);
    CHECK(x.labels == y.labels);
    CHECK(x.row == y.row);
    CHECK(a.length(row) == b.length(row));
  }
}

}  // namespace

TEST_CASE("record files hold what load_dataset reads", "[data][records]") {
  const testing::ScratchFolder folder;
  const Path source = folder.write("rows.jsonl", source_text(3000));
  const auto written = data::write_records(source, folder / "set", options(), &kTokenizer);
  const auto plain = data::load_dataset(source, options().rows, &kTokenizer);
  const auto records = data::load_dataset(folder / "set", {.format = "records", .vocab_size = 259}, &kTokenizer);
  CHECK(written.header.shards.size() > 3);
  check_equal(records, plain);
  CHECK(records.num_rows == 3000);
  CHECK(records.num_bad_rows == plain.num_bad_rows);
  CHECK(records.num_truncated == plain.num_truncated);
  CHECK_THROWS_AS(records.rows(), ConfigError);

  std::vector<int64_t> numbers;
  for (int64_t part = 0; part < 4; ++part) {
    const auto rows = data::open_records(folder / "set", {}, &kTokenizer, {part, 4});
    for (int64_t row = 0; row < rows.size(); ++row) numbers.push_back(rows.example(row).row);
  }
  std::vector<int64_t> expected;
  for (int64_t row = 0; row < plain.size(); ++row) expected.push_back(plain.number(row));
  CHECK(numbers == expected);
}

TEST_CASE("preparing that was stopped anywhere goes on to the same files", "[data][records]") {
  const testing::ScratchFolder folder;
  const Path source = folder.write("rows.jsonl", source_text(9000));
  data::write_records(source, folder / "whole", options(), &kTokenizer);
  for (const int batches : {0, 1, 2, 3}) {
    auto stopped = options();
    int left = batches;
    stopped.between_batches = [&] {
      if (left-- == 0) throw Stop();
    };
    const Path directory = folder / fmt::format("cut{}", batches);
    CHECK_THROWS_AS(data::write_records(source, directory, stopped, &kTokenizer), Stop);
    const auto rest = data::write_records(source, directory, options(), &kTokenizer);
    if (batches > 0) CHECK(rest.rows_from_before > 0);
    CHECK(files_of(directory) == files_of(folder / "whole"));
  }
  CHECK(data::write_records(source, folder / "whole", options(), &kTokenizer).was_there);
}

TEST_CASE("text that was stopped goes on, too", "[data][records]") {
  const testing::ScratchFolder folder;
  std::string text;
  for (int document = 0; document < 5000; ++document) text += fmt::format("{{\"text\": \"document {}\"}}\n", document);
  const Path source = folder.write("rows.jsonl", text);
  data::RecordOptions whole{.rows = {.format = "text", .max_length = 33}, .shard_bytes = 20000};
  data::write_records(source, folder / "whole", whole, &kTokenizer);
  auto stopped = whole;
  int left = 1;
  stopped.between_batches = [&] {
    if (left-- == 0) throw Stop();
  };
  CHECK_THROWS_AS(data::write_records(source, folder / "cut", stopped, &kTokenizer), Stop);
  CHECK(data::write_records(source, folder / "cut", whole, &kTokenizer).rows_from_before > 0);
  CHECK(files_of(folder / "cut") == files_of(folder / "whole"));
  check_equal(data::open_records(folder / "whole", {}, &kTokenizer), data::load_dataset(source, whole.rows, &kTokenizer));
}

TEST_CASE("records of other data, settings and tokenizers are refused", "[data][records]") {
  const testing::ScratchFolder folder;
  const Path source = folder.write("rows.jsonl", source_text(50));
  data::write_records(source, folder / "set", options(), &kTokenizer);
  auto other = options();
  other.rows.max_target_length = 8;
  CHECK_THROWS_AS(data::write_records(source, folder / "set", other, &kTokenizer), ConfigError);
  folder.write("rows.jsonl", source_text(51));
  CHECK_THROWS_AS(data::write_records(source, folder / "set", options(), &kTokenizer), ConfigError);
  const NamedByteTokenizer renamed("others");
  CHECK_THROWS_AS(data::open_records(folder / "set", {}, &renamed), DataError);
  CHECK_NOTHROW(data::open_records(folder / "set", {}, nullptr));
  CHECK_THROWS_AS(data::open_records(folder / "set", {.max_length = 5}, nullptr), DataError);
  CHECK_THROWS_AS(data::open_records(folder / "set", {.vocab_size = 100}, nullptr), FormatError);
  CHECK_THROWS_AS(data::open_records(folder / "none", {}, nullptr), IoError);
}

TEST_CASE("rows that are left out are not written", "[data][records]") {
  const testing::ScratchFolder folder;
  const Path source = folder.write("rows.jsonl", source_text(20));
  auto without = options();
  without.leave_out = {1, 3, 20};
  data::write_records(source, folder / "set", without, &kTokenizer);
  const auto rows = data::open_records(folder / "set", {}, &kTokenizer);
  CHECK(rows.size() == 18 - 3);
  for (int64_t row = 0; row < rows.size(); ++row) CHECK(!std::ranges::binary_search(without.leave_out, rows.number(row)));
}
