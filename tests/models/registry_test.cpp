#include "lora/models/registry.h"

#include "catch.h"
#include "lora/core/error.h"
#include "lora/models/llama.h"
#include "support.h"

using namespace lora;
using testing::message_of;
using testing::ScratchFolder;

namespace {

models::Architecture named(const std::string& name) {
  models::Architecture architecture = llama::architecture();
  architecture.name = architecture.model_type = name;
  return architecture;
}

/// Once for the whole program: the table is the process's.
void register_once() {
  static const bool done = [] {
    models::register_model(llama::architecture());
    models::register_model(named("alpaca"));
    return true;
  }();
  REQUIRE(done);
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("registry: an architecture is found by its name, and the nearest are named otherwise", "[registry]") {
  register_once();
  CHECK(models::architecture("alpaca").name == "alpaca");
  CHECK_THROWS_AS(models::architecture("lama"), ConfigError);
  const auto message = message_of<ConfigError>([] { models::architecture("lama"); });
  CHECK(contains(message, "found \"lama\""));
  CHECK(contains(message, "it knows llama, alpaca"));
}

TEST_CASE("registry: names are unique, and what every architecture needs is there", "[registry]") {
  register_once();
  const auto before = models::architecture_names();
  CHECK_THROWS_AS(models::register_model(named("llama")), ConfigError);
  CHECK_THROWS_AS(models::register_model(named("")), ConfigError);
  models::Architecture cannot_load = named("other");
  cannot_load.load = nullptr;
  CHECK_THROWS_AS(models::register_model(cannot_load), ConfigError);
  models::Architecture cannot_save = named("other");
  cannot_save.save = nullptr;
  CHECK_THROWS_AS(models::register_model(cannot_save), ConfigError);
  CHECK(models::architecture_names() == before);
}

TEST_CASE("registry: a directory is of the architecture that config.json names", "[registry]") {
  register_once();
  const ScratchFolder folder;
  const auto of = [&](const std::string& config) {
    folder.write("config.json", config);
    return models::architecture_of(folder.path()).name;
  };
  CHECK(of(R"({"model_type": "alpaca"})") == "alpaca");
  CHECK(of(R"({"hidden_size": 8})") == "llama");
  CHECK_THROWS_AS(of(R"({"model_type": "mistral"})"), FormatError);
  CHECK_THROWS_AS(of(R"({"model_type": 3})"), FormatError);
  CHECK_THROWS_AS(of("{"), FormatError);
  CHECK_THROWS_AS(models::architecture_of(folder.path() / "absent"), IoError);
  const ScratchFolder empty;
  CHECK_THROWS_AS(models::architecture_of(empty.path()), IoError);
}

TEST_CASE("registry: what an architecture makes it saves and loads", "[registry]") {
  register_once();
  const auto& architecture = models::architecture("llama");
  const auto model =
      architecture.make({.preset = "tiny", .fields = {{"num_hidden_layers", "1"}}, .parameters = {.dtype = at::kBFloat16}});
  CHECK(model->num_layers() == 1);
  CHECK(model->stored_dtype() == at::kBFloat16);
  CHECK(model->end_ids() == std::vector<int64_t>{2});
  const ScratchFolder folder;
  architecture.save(*model, folder.path(), {});
  const auto loaded = models::architecture_of(folder.path()).load(folder.path(), {});
  const auto before = model->named_parameters(), after = loaded->named_parameters();
  REQUIRE(before.size() == after.size());
  for (const auto& entry : before) CHECK(entry.value().equal(after[entry.key()]));
}
