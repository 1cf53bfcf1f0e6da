#include "data/dataset_cache.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "captured_log.h"
#include "data/small_tokenizer.h"
#include "lora/core/error.h"
#include "lora/core/file.h"

using namespace lora;
using data::Dataset;
using data::DatasetOptions;

namespace {

/// Counts what it is asked for.
class CountingTokenizer : public testing::ByteTokenizer {
 public:
  explicit CountingTokenizer(std::string fingerprint = "bytes") : fingerprint_(std::move(fingerprint)) {}
  std::vector<int64_t> encode(std::string_view text) const override {
    ++num_calls;
    return ByteTokenizer::encode(text);
  }
  std::string fingerprint() const override { return fingerprint_; }

  mutable std::atomic<int> num_calls = 0;

 private:
  std::string fingerprint_;
};

const std::string kText =
    "{\"content\": \"ab\", \"summary\": \"cde\"}\n"
    "not json\n"
    "{\"content\": \"abcdefgh\", \"summary\": \"uvwxyz\"}\n"
    "{\"content\": \"\"}\n"
    "{\"content\": \"q\", \"summary\": \"r\"}\n";

struct Folder : testing::ScratchFolder {
  DatasetOptions options() const {
    return {.format = "adgen",
            .max_source_length = 5,
            .max_target_length = 4,
            .skip_bad_rows = true,
            .keep_text_pairs = 2,
            .cache_dir = path() / "cache"};
  }
  std::vector<Path> cache_files() const {
    std::vector<Path> files;
    for (const auto& entry : std::filesystem::directory_iterator(path() / "cache")) files.push_back(entry.path());
    return files;
  }
};

void check_equal(const Dataset& a, const Dataset& b) {
  CHECK(std::ranges::equal(a.rows().tokens, b.rows().tokens));
  CHECK(std::ranges::equal(a.rows().ends, b.rows().ends));
  CHECK(std::ranges::equal(a.rows().numbers, b.rows().numbers));
  CHECK(a.num_rows == b.num_rows);
  CHECK(a.num_bad_rows == b.num_bad_rows);
  CHECK(a.num_truncated == b.num_truncated);
  CHECK(a.bad_row_reasons == b.bad_row_reasons);
  REQUIRE(a.text_pairs.size() == b.text_pairs.size());
  for (size_t i = 0; i < a.text_pairs.size(); ++i) {
    CHECK(a.text_pairs[i].prompt == b.text_pairs[i].prompt);
    CHECK(a.text_pairs[i].response == b.text_pairs[i].response);
  }
}

}  // namespace

TEST_CASE("the second time tokens come from the cache, the same in every respect", "[data]") {
  const Folder folder;
  const CountingTokenizer tokenizer;
  const Path file = folder.write("x.jsonl", kText);
  auto uncached = folder.options();
  uncached.cache_dir.reset();
  const Dataset plain = data::load_dataset(file, uncached, &tokenizer);
  CHECK(plain.num_bad_rows == 2);
  CHECK(plain.bad_row_reasons.at(0).find("x.jsonl:2") != std::string::npos);

  const Dataset first = data::load_dataset(file, folder.options(), &tokenizer);
  CHECK_FALSE(first.cache_file);
  check_equal(first, plain);
  CHECK(folder.cache_files().size() == 1);

  const int calls = tokenizer.num_calls;
  const Dataset second = data::load_dataset(file, folder.options(), &tokenizer);
  CHECK(tokenizer.num_calls == calls);
  CHECK(second.cache_file == folder.cache_files().at(0));
  check_equal(second, plain);
  for (int64_t row = 0; row < plain.size(); ++row) {
    CHECK(second.example(row).input_ids == plain.example(row).input_ids);
    CHECK(second.example(row).labels == plain.example(row).labels);
    CHECK(second.example(row).row == plain.example(row).row);
    CHECK(second.length(row) == plain.length(row));
  }
  // The rows stay although the cache goes.
  std::filesystem::remove_all(folder / "cache");
  const Dataset copy = second;
  check_equal(copy, plain);
  Dataset full = second;
  CHECK_THROWS_AS(full.add(plain.example(0)), ConfigError);
}

TEST_CASE("the content of the data counts, not its place", "[data]") {
  const Folder folder;
  const CountingTokenizer tokenizer;
  data::load_dataset(folder.write("x.jsonl", kText), folder.options(), &tokenizer);
  const Dataset moved = data::load_dataset(folder.write("other/y.json", kText), folder.options(), &tokenizer);
  CHECK(moved.cache_file);
  CHECK(moved.bad_row_reasons.at(0).find("y.json:2") != std::string::npos);
  CHECK(moved.bad_row_reasons.at(0).find("x.jsonl") == std::string::npos);
}

TEST_CASE("whatever changes the tokens makes another cache file", "[data]") {
  const Folder folder;
  const CountingTokenizer tokenizer, other_tokenizer("other");
  const std::string text = R"({"content": "ab", "summary": "cde", "prompt": "x", "completion": "y", "none": "z"})";
  const Path file = folder.write("x.jsonl", text);
  const DatasetOptions options = folder.options();
  data::load_dataset(file, options, &tokenizer);
  size_t files = 1;
  const auto check_is_new = [&](const DatasetOptions& changed, const data::Tokenizer& other, const Path& source) {
    CHECK_FALSE(data::load_dataset(source, changed, &other).cache_file);
    CHECK(folder.cache_files().size() == ++files);
    CHECK(data::load_dataset(source, changed, &other).cache_file);
  };
  const auto change = [&](const auto& edit) {
    DatasetOptions changed = options;
    edit(changed);
    check_is_new(changed, tokenizer, file);
  };
  change([](auto& o) { o.format = "completion"; });
  change([](auto& o) { o.max_source_length = 6; });
  change([](auto& o) { o.max_target_length = 5; });
  change([](auto& o) { o.max_length = 100; });
  change([](auto& o) { o.truncate_long = false; });
  change([](auto& o) { o.skip_bad_rows = false; });
  change([](auto& o) { o.vocab_size = 200; });
  change([](auto& o) { o.prompt_column = "prompt"; });
  change([](auto& o) { o.prompt_column = "none"; });
  change([](auto& o) {
    o.prompt_column = "none";
    o.response_column = "completion";
  });
  change([](auto& o) { o.response_column = "completion"; });
  change([](auto& o) { o.keep_text_pairs = 0; });
  change([](auto& o) { o.prompt_template = formats::prompt_template("llama2"); });
  change([](auto& o) { o.prompt_template = formats::PromptTemplate{.user = "{content}"}; });
  change([](auto& o) { o.prompt_template = formats::PromptTemplate{.user = "{content} "}; });
  check_is_new(options, other_tokenizer, file);
  check_is_new(options, tokenizer, folder.write("longer.jsonl", text + "\n" + text));

  // Plain text and rows of text may have the same bytes.
  DatasetOptions as_text = options;
  as_text.format = "text";
  check_is_new(as_text, tokenizer, folder.write("rows.jsonl", R"({"text": "ab"})"));
  check_is_new(as_text, tokenizer, folder.write("rows.txt", R"({"text": "ab"})"));
}

TEST_CASE("a damaged cache file is named, made anew and good again", "[data]") {
  const Folder folder;
  const CountingTokenizer tokenizer;
  const Path file = folder.write("x.jsonl", kText);
  const Dataset plain = data::load_dataset(file, folder.options(), &tokenizer);
  const Path cache = folder.cache_files().at(0);
  const std::string good = read_file(cache);
  std::vector<std::string> damaged = {"", "x", good.substr(0, 100), good.substr(0, good.size() - 1), good + good};
  for (const size_t at : {size_t{0}, size_t{20}, size_t{60}, size_t{127}, good.size() - 1}) {
    damaged.push_back(good);
    damaged.back()[at] = static_cast<char>(damaged.back()[at] ^ 0x40);
  }
  for (const std::string& bytes : damaged) {
    write_file_atomically(cache, bytes);
    const std::string log = testing::captured_log([&] {
      const Dataset dataset = data::load_dataset(file, folder.options(), &tokenizer);
      CHECK_FALSE(dataset.cache_file);
      check_equal(dataset, plain);
    });
    CHECK(log.starts_with("warning: "));
    CHECK(std::ranges::count(log, '\n') == 1);
    CHECK(log.find(cache.string()) != std::string::npos);
    CHECK(read_file(cache) == good);
  }
  std::filesystem::remove(cache);
  std::filesystem::create_directory(cache);  // cannot be mapped, nor replaced
  testing::captured_log([&] { check_equal(data::load_dataset(file, folder.options(), &tokenizer), plain); });
}

TEST_CASE("what a run that was killed left in the cache directory is removed", "[data]") {
  const Folder folder;
  const CountingTokenizer tokenizer;
  const pid_t ended = ::fork();
  if (ended == 0) ::_exit(0);
  REQUIRE(::waitpid(ended, nullptr, 0) == ended);
  folder.write(fmt::format("cache/x.tokens.tmp-{}-1", ended), "half");
  data::load_dataset(folder.write("x.jsonl", kText), folder.options(), &tokenizer);
  REQUIRE(folder.cache_files().size() == 1);
  CHECK(folder.cache_files()[0].extension() == ".tokens");
}

TEST_CASE("a directory that cannot be written is warned about once, and the data are there", "[data]") {
  const Folder folder;
  const CountingTokenizer tokenizer;
  const Path file = folder.write("x.jsonl", kText), other = folder.write("y.jsonl", kText + kText);
  DatasetOptions options = folder.options();
  options.cache_dir = folder.write("a file", "") / "cache";
  const std::string log = testing::captured_log([&] {
    CHECK(data::load_dataset(file, options, &tokenizer).size() == 3);
    CHECK(data::load_dataset(other, options, &tokenizer).size() == 6);
  });
  CHECK(log.starts_with("warning: [data.cache_dir]"));
  CHECK(std::ranges::count(log, '\n') == 1);
  CHECK(log.find("a file/cache") != std::string::npos);
}

TEST_CASE("tokenizers without a fingerprint and sources that are no files are not cached", "[data]") {
  const Folder folder;
  const testing::ByteTokenizer unknown;
  CHECK(data::load_dataset(folder.write("x.jsonl", kText), folder.options(), &unknown).size() == 3);
  CHECK_FALSE(std::filesystem::exists(folder / "cache"));
  const Path pipe = folder / "pipe";
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  std::thread writer([&] { OutputFile(pipe).write(kText); });
  const CountingTokenizer tokenizer;
  CHECK(data::load_dataset(pipe, folder.options(), &tokenizer).size() == 3);
  writer.join();
  CHECK_FALSE(std::filesystem::exists(folder / "cache"));
  CHECK_THROWS_AS(data::load_dataset(folder / "none", folder.options(), &tokenizer), IoError);
}

TEST_CASE("data without usable rows leave no cache", "[data]") {
  const Folder folder;
  const CountingTokenizer tokenizer;
  CHECK_THROWS_AS(data::load_dataset(folder.write("x.jsonl", "no\n"), folder.options(), &tokenizer), DataError);
  CHECK_FALSE(std::filesystem::exists(folder / "cache"));
}

TEST_CASE("a source that changes while it is read is not cached", "[data]") {
  const Folder folder;
  const CountingTokenizer tokenizer;
  const Path file = folder.write("x.jsonl", kText);
  const auto cache = data::DatasetCache::find(file, folder.options(), &tokenizer);
  REQUIRE(cache);
  const Dataset dataset = data::load_dataset(file, {.skip_bad_rows = true}, &tokenizer);
  folder.write("x.jsonl", kText + kText);
  cache->save(dataset);
  CHECK_FALSE(std::filesystem::exists(folder / "cache"));
}

TEST_CASE("runs can share a cache directory", "[data]") {
  const Folder folder;
  const CountingTokenizer tokenizer;
  const Path file = folder.write("x.jsonl", kText);
  auto uncached = folder.options();
  uncached.cache_dir.reset();
  const Dataset plain = data::load_dataset(file, uncached, &tokenizer);
  std::atomic<int> num_equal = 0;
  const std::string log = testing::captured_log([&] {
    std::vector<std::thread> runs;
    for (int run = 0; run < 8; ++run) {
      runs.emplace_back([&] {
        for (int round = 0; round < 20; ++round) {
          const Dataset dataset = data::load_dataset(file, folder.options(), &tokenizer);
          num_equal += std::ranges::equal(dataset.rows().tokens, plain.rows().tokens);
          if (round % 5 == 4) std::filesystem::remove_all(folder / "cache" / "nothing");
        }
      });
    }
    for (auto& run : runs) run.join();
  });
  CHECK(num_equal == 160);
  CHECK(log.empty());
  CHECK(folder.cache_files().size() == 1);
}
