#include "lora/data/glm_tokenizer.h"

#include "formats/json.h"
#include "lora/core/error.h"
#include "lora/core/file.h"
#include "support.h"

using namespace lora;
using formats::Json;

namespace {

Path folder() { return testing::reference_folder() / "glm_tokenizer"; }

Json expected() {
  const Path file = folder() / "expected.json";
  return formats::parse_json(read_file(file), file.string());
}

using Ids = std::vector<int64_t>;

}  // namespace

TEST_CASE("both layouts of ChatGLM's tokenizer give what the rules give", "[data][glm]") {
  const Json cases = expected();
  for (const std::string layout : {"v1", "v2"}) {
    INFO(layout);
    const auto tokenizer = data::load_glm_tokenizer(folder() / layout / "ice_text.model");
    const Json& of_layout = cases.at(layout);
    CHECK(tokenizer->vocab_size() == of_layout.at("vocab_size").get<int64_t>());
    for (const auto& [piece, id] : of_layout.at("ids").items()) CHECK(tokenizer->piece(id.get<int64_t>()) == piece);
    const auto glm = tokenizer->glm_ids().value();
    CHECK(glm.mask == of_layout.at("ids").at("[MASK]"));
    CHECK(glm.gmask == of_layout.at("ids").at("[gMASK]"));
    CHECK(glm.sop == of_layout.at("ids").at("<sop>"));
    CHECK(glm.eop == of_layout.at("ids").at("<eop>"));
    CHECK(tokenizer->pad_id() == of_layout.at("ids").at("<pad>"));
    CHECK(tokenizer->bos_id() == glm.sop);
    CHECK(tokenizer->eos_id() == glm.eop);
    for (const Json& text : of_layout.at("texts")) {
      INFO(text.at("text"));
      const auto ids = tokenizer->encode(text.at("text").get<std::string>());
      CHECK(ids == text.at("ids").get<Ids>());
      CHECK(tokenizer->encode_without_prefix(text.at("text").get<std::string>()) == text.at("ids_without_prefix").get<Ids>());
      CHECK(tokenizer->decode(ids) == text.at("decoded").get<std::string>());
    }
  }
}

TEST_CASE("the number of image tokens is the configuration's, else the layout's", "[data][glm]") {
  const testing::ScratchFolder scratch;
  for (const auto& [layout, pieces, default_shift] : {std::tuple{"v1", 1344, 20000}, std::tuple{"v2", 1344, 0}}) {
    const Path file = scratch.write(std::string(layout) + "/ice_text.model", read_file(folder() / layout / "ice_text.model"));
    CHECK(data::load_glm_tokenizer(file)->vocab_size() == pieces + default_shift);
    scratch.write(std::string(layout) + "/tokenizer_config.json", R"({"num_image_tokens": 7})");
    CHECK(data::load_glm_tokenizer(file)->vocab_size() == pieces + 7);
    CHECK(data::load_glm_tokenizer(file)->pad_id() == 3 + 7);
  }
}

TEST_CASE("padding, image tokens and control pieces give no text", "[data][glm]") {
  const auto tokenizer = data::load_glm_tokenizer(folder() / "v1/ice_text.model");
  const auto glm = tokenizer->glm_ids().value();
  Ids ids = tokenizer->with_special_tokens(tokenizer->encode("你好"));
  ids.insert(ids.begin(), {tokenizer->pad_id(), tokenizer->pad_id(), 0, 19999});
  ids.push_back(glm.eop);
  CHECK(tokenizer->decode(ids) == "你好");
  CHECK(tokenizer->piece(19999) == "<image_19999>");
  CHECK_THROWS_AS(tokenizer->decode(Ids{-1}), DataError);
  CHECK_THROWS_AS(tokenizer->decode(Ids{tokenizer->vocab_size()}), DataError);
  CHECK_THROWS_AS(tokenizer->piece(tokenizer->vocab_size()), DataError);
  CHECK_THROWS_AS(tokenizer->piece(-1), DataError);
}

TEST_CASE("prompt and answer are joined by the mask and the start token", "[data][glm]") {
  const auto tokenizer = data::load_glm_tokenizer(folder() / "v2/ice_text.model");
  CHECK(tokenizer->with_special_tokens({10, 11}) == Ids{10, 11, 1001, 1004});
  CHECK(tokenizer->with_special_tokens({10, 11}, Ids{12}) == Ids{10, 11, 1001, 1004, 12, 1005});
  CHECK(data::pad_left({{1, 2, 3}, {}, {4}}, 3) == std::vector<Ids>{{1, 2, 3}, {3, 3, 3}, {3, 3, 4}});
  CHECK(data::pad_left({}, 3).empty());
}

TEST_CASE("a model directory says which tokenizer it has", "[data][glm]") {
  CHECK(data::find_tokenizer(folder() / "v2")->glm_ids().has_value());
  CHECK(data::load_tokenizer(folder() / "v1/ice_text.model")->glm_ids().has_value());

  const testing::ScratchFolder scratch;
  const std::string model = read_file(folder() / "v2/ice_text.model");
  scratch.write("named/tokenizer.model", model);
  CHECK_FALSE(data::find_tokenizer(scratch / "named")->glm_ids().has_value());
  scratch.write("named/tokenizer_config.json", R"({"tokenizer_class": "ChatGLMTokenizer", "num_image_tokens": 0})");
  CHECK(data::find_tokenizer(scratch / "named")->glm_ids().has_value());
  CHECK(data::find_tokenizer(scratch / "none") == nullptr);

  const auto v1 = data::find_tokenizer(folder() / "v1"), v2 = data::find_tokenizer(folder() / "v2");
  CHECK(v1->fingerprint() != v2->fingerprint());
}

TEST_CASE("tokenizers of other models and odd configurations are refused", "[data][glm]") {
  const testing::ScratchFolder scratch;
  const auto refused = [&](const std::string& model, const std::string& config) {
    const Path file = scratch.write("model/ice_text.model", model);
    scratch.write("model/tokenizer_config.json", config);
    return testing::message_of<FormatError>([&] { data::load_glm_tokenizer(file); });
  };
  const std::string model = read_file(folder() / "v2/ice_text.model");
  const std::string llama = read_file(testing::reference_folder() / "../../quickstart/base/tokenizer.model");
  CHECK(refused(llama, "{}").find("<pad>") != std::string::npos);
  CHECK(refused(model, R"({"num_image_tokens": -1})").find("num_image_tokens") != std::string::npos);
  CHECK(refused(model, R"({"num_image_tokens": "7"})").find("num_image_tokens") != std::string::npos);
  CHECK(refused(model, R"({"remove_space": true})").find("remove_space") != std::string::npos);
  CHECK(refused(model, R"({"gmask_token": "<none>"})").find("<none>") != std::string::npos);
  CHECK(refused(model, R"({"gmask_token": 3})").find("gmask_token") != std::string::npos);
  CHECK(refused(model, "[]").find("object") != std::string::npos);
  refused("", "{}");
  refused(model.substr(0, model.size() / 2) + "\xff", "{}");
}

TEST_CASE("known ids of the published ChatGLM tokenizer", "[data][glm]") {
  const auto file = testing::outside_data("data/glm_hf_meta/ice_text.model");
  if (!file) return;
  const auto tokenizer = data::load_glm_tokenizer(*file);
  const auto ids = [&](std::string_view text) { return tokenizer->with_special_tokens(tokenizer->encode(text)); };
  CHECK(ids("你好") == Ids{5, 74874, 130001, 130004});
  CHECK(ids("晚上睡不着应该怎么办") == Ids{74747, 83400, 64213, 66846, 130001, 130004});
  CHECK(ids("def main():\n    print('hello world')\t# greeting") ==
        Ids{1616, 594, 125936, 4, 130011, 2274, 89, 7283, 398, 125686, 130008, 61, 25672, 130001, 130004});
  CHECK(tokenizer->encode_without_prefix("👋") == Ids{130328, 130247, 130233, 130227});
}
