#include "data/charsmap.h"

#include <random>

#include "data/pieces.h"
#include "data/small_tokenizer.h"
#include "lora/core/error.h"
#include "support.h"

using namespace lora;

TEST_CASE("a normalisation table of SentencePiece is taken, a damaged one is refused or harmless", "[data]") {
  const std::string model = testing::train_small_model("nmt_nfkc");
  CHECK_NOTHROW(data::check_charsmaps(model, "m"));
  const std::string text = "Hello \u2460 \ufdfa \uff76\uff9e e\u0301 \u4f60\u597d \U0001f680\n x \u2122";
  const size_t table = model.find("nmt_nfkc");
  REQUIRE(table != std::string::npos);
  std::mt19937 random(5);
  size_t refused = 0;
  for (int round = 0; round < 300; ++round) {
    std::string damaged = model;
    for (int i = 0; i < 1 + round % 20; ++i)
      damaged[table + 8 + random() % (model.size() - table - 8)] = static_cast<char>(random());
    try {
      data::Pieces(damaged, "m").encode(text);  // whatever it gives, it reads no memory of others
    } catch (const Error&) {
      ++refused;
    }
  }
  CHECK(refused > 100);
}

TEST_CASE("a table that leads out of itself, and one that is cut off, are refused", "[data]") {
  const auto message = [](const std::string& table) {
    const std::string spec =
        std::string("\x12") + static_cast<char>(table.size() & 0x7f | 0x80) + static_cast<char>(table.size() >> 7) + table;
    const std::string model =
        std::string("\x1a") + static_cast<char>(spec.size() & 0x7f | 0x80) + static_cast<char>(spec.size() >> 7) + spec;
    return testing::message_of<FormatError>([&] { data::check_charsmaps(model, "m"); });
  };
  const auto table_of = [](uint32_t first_unit, const std::string& texts) {
    std::string table(4 + 1024, '\0');
    table[1] = 4;  // 1024
    std::memcpy(table.data() + 4, &first_unit, 4);
    return table + texts;
  };
  CHECK(message(table_of(1u << 10 << 8, std::string("a\0", 2))).find("leads out of itself") != std::string::npos);
  CHECK(message(table_of(1u << 8, "a")).find("without an end") != std::string::npos);
  CHECK(message(table_of(0, "")).find("another size") != std::string::npos);
  CHECK(message("abc").find("cut off") != std::string::npos);
}
