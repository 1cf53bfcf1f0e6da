#include "lora/train/checkpoint.h"

#include <ATen/ATen.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>

#include "lora/core/error.h"
#include "lora/core/file.h"
#include "lora/io/safetensors.h"
#include "support.h"
#include "train/training_setup.h"

using namespace lora;
using namespace lora::testing;
using train::load_checkpoint;
using train::newest_checkpoint;
using train::save_checkpoint;
using train::verify_checkpoint;

namespace {

namespace fs = std::filesystem;

/// The micro-batches of a step, as a pure function of its number.
std::vector<Batch> batches_of_step(int64_t step) { return batches_of(tiny_dataset(4, static_cast<uint64_t>(step)), 2); }

std::vector<double> train_to(Setup& setup, int64_t step) {
  std::vector<double> losses;
  while (setup.state().step < step) {
    losses.push_back(setup.step(batches_of_step(setup.state().step + 1)).loss);
  }
  return losses;
}

Path save(Setup& setup, const Path& output, int64_t keep = 100, bool optimizer = true) {
  return save_checkpoint(output, *setup.model, setup.state(), {.optimizer = optimizer, .config_yaml = "run: {}\n"}, keep);
}

void load(Setup& setup, const Path& checkpoint) { load_checkpoint(checkpoint, *setup.model, setup.state()); }

/// A checkpoint of two steps in `output`.
Path small_checkpoint(const Path& output) {
  auto setup = lora_setup();
  train_to(setup, 2);
  return save(setup, output);
}

std::set<std::string> files_below(const Path& folder) {
  std::set<std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) {
      files.insert(entry.path().lexically_relative(folder).generic_string());
    }
  }
  return files;
}

std::set<std::string> names_in(const Path& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) {
    names.insert(entry.path().filename().string());
  }
  return names;
}

void overwrite(const Path& path, const std::string& bytes) { std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes; }

/// Trains 20 steps straight, and 10, saved, then 10 more in new objects; compares every bit.
void check_resume(const std::function<Setup()>& make) {
  const ScratchFolder scratch;
  auto straight = make();
  seed_generators(99);
  const auto losses = train_to(straight, 20);
  const auto generator = generator_state(at::kCPU);

  auto first = make();
  seed_generators(99);
  train_to(first, 10);
  const Path checkpoint = save(first, scratch.path());

  auto second = make();
  seed_generators(12345);
  train_to(second, 3);  // whatever state it is in when it is loaded into
  load(second, checkpoint);
  CHECK(second.state().step == 10);
  CHECK(same_bits(values_of(*second.model), values_of(*first.model)));
  const auto rest = train_to(second, 20);

  CHECK(std::equal(rest.begin(), rest.end(), losses.begin() + 10));
  CHECK(same_bits(values_of(*second.model), values_of(*straight.model)));
  CHECK(same_bits(values_of(*second.state().optimizer), values_of(*straight.state().optimizer)));
  CHECK(second.state().scaler.state() == straight.state().scaler.state());
  CHECK(second.state().nonfinite_in_a_row == straight.state().nonfinite_in_a_row);
  CHECK(second.state().skipped_steps == straight.state().skipped_steps);
  CHECK(generator_state(at::kCPU).equal(generator));
}

}  // namespace

TEST_CASE("a resumed run equals one that was never interrupted, bit by bit", "[train]") {
  auto options = tiny_options();
  SECTION("adapter, fp16 with a moving scale, dropout") {
    options.amp_dtype = at::kHalf;
    options.scaler = {.init = 0x1p20, .factor = 2, .min = 1, .window = 4};
    options.schedule.count_skipped = GENERATE(true, false);
    check_resume([=] { return lora_setup(options, /*dropout=*/0.2); });
  }
  SECTION("adapter, bf16, SGD with momentum") {
    options.amp_dtype = at::kBFloat16;
    options.optimizer.type = "sgd";
    options.optimizer.momentum = 0.9;
    check_resume([=] { return lora_setup(options, /*dropout=*/0.2); });
  }
  SECTION("every parameter, fp32") {
    check_resume([=] { return full_setup(options); });
  }
  SECTION("every parameter, in bf16 with fp32 copies or without") {
    options.optimizer.master_weights = GENERATE(true, false);
    check_resume([=] { return full_setup(options, at::kBFloat16); });
  }
}

TEST_CASE("a checkpoint is taken at any step", "[train]") {
  SplitMix64 random(23);
  auto straight = lora_setup(tiny_options(), /*dropout=*/0.1);
  seed_generators(7);
  train_to(straight, 12);
  for (int cut = 0; cut < 20; ++cut) {
    const ScratchFolder scratch;
    const auto at = static_cast<int64_t>(random.below(13));
    auto first = lora_setup(tiny_options(), /*dropout=*/0.1);
    seed_generators(7);
    train_to(first, at);
    const Path checkpoint = save(first, scratch.path());
    auto second = lora_setup(tiny_options(), /*dropout=*/0.1);
    load(second, checkpoint);
    train_to(second, 12);
    CAPTURE(at);
    CHECK(same_bits(values_of(*second.model), values_of(*straight.model)));
  }
}

TEST_CASE("the files of a checkpoint", "[train]") {
  const ScratchFolder scratch;
  SECTION("adapter, and what else trains") {
    const Path path = small_checkpoint(scratch.path());
    CHECK(path == scratch / "checkpoints/step-2");
    CHECK(files_below(path) == std::set<std::string>{"adapter/adapter_config.json", "adapter/adapter_model.safetensors",
                                                     "config.yaml", "generator.safetensors", "manifest.json",
                                                     "optimizer.safetensors", "state.json", "trained.safetensors"});
    const auto outside = io::load_safetensors(path / "trained.safetensors");
    CHECK(outside.size() == 1);
    CHECK(outside.contains("layers.1.norm.weight"));
    CHECK(read_file(path / "config.yaml") == "run: {}\n");
    CHECK(train::checkpoint_position(path).step == 2);
    CHECK_FALSE(verify_checkpoint(path));
  }
  SECTION("a whole model, in its own types") {
    auto setup = full_setup(tiny_options(), at::kBFloat16);
    const Path path = save(setup, scratch.path());
    CHECK(files_below(path) == std::set<std::string>{"config.yaml", "generator.safetensors", "manifest.json", "model.safetensors",
                                                     "optimizer.safetensors", "state.json"});
    const auto saved = io::load_safetensors(path / "model.safetensors");
    CHECK(same_bits(Values(saved.begin(), saved.end()), values_of(*setup.model)));
  }
  SECTION("without the optimizer") {
    auto setup = lora_setup();
    train_to(setup, 1);
    const Path path = save(setup, scratch.path(), 1, /*optimizer=*/false);
    CHECK_FALSE(fs::exists(path / "optimizer.safetensors"));
    CHECK_FALSE(verify_checkpoint(path));
    CHECK_FALSE(newest_checkpoint(scratch.path()));
    const auto text = message_of<FormatError>([&] { load(setup, path); });
    CHECK(text.find("save_optimizer") != std::string::npos);
  }
}

TEST_CASE("saving the same step twice replaces it", "[train]") {
  const ScratchFolder scratch;
  auto setup = lora_setup();
  train_to(setup, 2);
  save(setup, scratch.path());
  const Path path = save(setup, scratch.path());
  CHECK_FALSE(verify_checkpoint(path));
  CHECK(names_in(scratch / "checkpoints") == std::set<std::string>{"step-2"});
}

TEST_CASE("every damaged file is noticed", "[train]") {
  const ScratchFolder scratch;
  const Path path = small_checkpoint(scratch.path());
  SplitMix64 random(31);
  for (const auto& name : files_below(path)) {
    CAPTURE(name);
    const std::string good = read_file(path / name);
    const auto check_noticed = [&] {
      const auto defect = verify_checkpoint(path);
      REQUIRE(defect);
      CHECK(defect->find(path.string()) != std::string::npos);
      if (name != "manifest.json") CHECK(defect->find(name) != std::string::npos);
    };
    overwrite(path / name, good.substr(0, good.size() - 1));
    check_noticed();
    overwrite(path / name, good.substr(0, random.below(good.size())));
    check_noticed();
    overwrite(path / name, good + " more");
    check_noticed();
    fs::remove(path / name);
    check_noticed();
    for (int i = 0; i < 100; ++i) {
      std::string flipped = good;
      flipped[random.below(good.size())] ^= static_cast<char>(1 << random.below(8));
      overwrite(path / name, flipped);
      check_noticed();
    }
    overwrite(path / name, good);
    CHECK_FALSE(verify_checkpoint(path));
  }
}

TEST_CASE("verification of things that are no checkpoint", "[train]") {
  const ScratchFolder scratch;
  CHECK(verify_checkpoint(scratch / "nowhere"));
  CHECK(verify_checkpoint(scratch.path()));
  const Path path = small_checkpoint(scratch.path());
  for (const std::string manifest :
       {"", "[]", "{}", R"({"format": 1})", R"({"format": 1, "files": []})", R"({"format": 1, "files": {}})",
        R"({"format": 2, "files": {}})", R"({"format": 1, "files": {"state.json": 3}})",
        R"({"format": 1, "files": {"../state.json": {"size": 1, "digest": ""}}})",
        R"({"format": 1, "files": {"/etc/passwd": {"size": 1, "digest": ""}}})",
        R"({"format": 1, "files": {"state.json": {"size": "1", "digest": ""}}})"}) {
    CAPTURE(manifest);
    overwrite(path / "manifest.json", manifest);
    CHECK(verify_checkpoint(path));
  }
}

TEST_CASE("the newest checkpoint that verifies is found", "[train]") {
  const ScratchFolder scratch;
  CHECK_FALSE(newest_checkpoint(scratch.path()));
  auto setup = lora_setup();
  std::vector<Path> saved;
  for (const int64_t step : {9, 10, 11}) {
    train_to(setup, step);
    saved.push_back(save(setup, scratch.path()));
  }
  for (const char* other : {"step-", "step-x", "step-12x", "step--1", "other", "step-99.tmp-1-0"}) {
    fs::create_directories(scratch / "checkpoints" / other);
  }
  scratch.write("checkpoints/step-50", "a file");
  CHECK(newest_checkpoint(scratch.path()) == saved[2]);
  fs::create_directories(scratch / "checkpoints/step-12");
  CHECK(newest_checkpoint(scratch.path()) == saved[2]);
  overwrite(saved[2] / "state.json", "{}");
  CHECK(newest_checkpoint(scratch.path()) == saved[1]);
  fs::remove(saved[1] / "optimizer.safetensors");
  CHECK(newest_checkpoint(scratch.path()) == saved[0]);
  CHECK(train::checkpoint_position(saved[0]).step == 9);
}

TEST_CASE("old checkpoints go, the newest never", "[train]") {
  const ScratchFolder scratch;
  const Path folder = scratch / "checkpoints";
  auto setup = lora_setup();
  const auto save_at = [&](int64_t step, int64_t keep) {
    train_to(setup, step);
    return save(setup, scratch.path(), keep);
  };
  for (const int64_t step : {1, 2, 9, 10}) save_at(step, 2);
  CHECK(names_in(folder) == std::set<std::string>{"step-10", "step-9"});
  save_at(11, 1);
  CHECK(names_in(folder) == std::set<std::string>{"step-11"});
  CHECK_THROWS_AS(save_at(12, 0), ConfigError);
  CHECK(names_in(folder) == std::set<std::string>{"step-11"});

  SECTION("going on from an earlier one drops those of the run that was given up") {
    save_at(12, 3);
    save_at(14, 3);
    auto again = lora_setup();
    load(again, folder / "step-12");
    train_to(again, 13);
    CHECK(save(again, scratch.path(), 2) == folder / "step-13");
    CHECK(names_in(folder) == std::set<std::string>{"step-12", "step-13"});
    CHECK(newest_checkpoint(scratch.path()) == folder / "step-13");
  }
}

TEST_CASE("a checkpoint of another run's form is refused", "[train]") {
  const ScratchFolder scratch;
  const Path path = small_checkpoint(scratch.path());
  SECTION("a whole model instead of an adapter") {
    auto setup = full_setup();
    const auto before = values_of(*setup.model);
    CHECK_THROWS_AS(load(setup, path), ShapeError);
    CHECK(same_bits(values_of(*setup.model), before));
  }
  SECTION("another rank") {
    auto setup = lora_setup();
    remove_adapter(*setup.model, "default");
    LoraOptions lora{.rank = 3};
    lora.targets = std::vector<std::string>{"proj"};
    setup.adapters = inject(*setup.model, lora);
    freeze_base(*setup.model, setup.adapters, {.train = {"layers.1.norm"}, .freeze = {}});
    setup.trainer = std::make_unique<train::Trainer>(setup.model, setup.adapters, tiny_options());
    CHECK_THROWS_AS(load(setup, path), ShapeError);
  }
  SECTION("another optimizer") {
    auto options = tiny_options();
    options.optimizer.type = "sgd";
    auto setup = lora_setup(options);
    const auto before = values_of(*setup.model);
    CHECK_THROWS_AS(load(setup, path), ShapeError);
    CHECK(same_bits(values_of(*setup.model), before));
  }
  SECTION("a damaged file") {
    overwrite(path / "optimizer.safetensors", "x");
    auto setup = lora_setup();
    const auto text = message_of<FormatError>([&] { load(setup, path); });
    CHECK(text.find("optimizer.safetensors") != std::string::npos);
  }
}

TEST_CASE("a checkpoint knows what evaluations have shown and who stopped the run", "[train]") {
  const ScratchFolder scratch;
  auto setup = lora_setup();
  train_to(setup, 6);
  setup.state().stopped_by = "watch";
  SECTION("after some") {
    for (const auto& [step, loss] : std::vector<std::pair<int64_t, double>>{{2, 2.0 / 3}, {4, 0.5}, {6, 0.75}}) {
      setup.state().evaluations.add(step, loss, 0.25);
    }
  }
  SECTION("after one that was not finite") { setup.state().evaluations.add(2, std::nan("")); }
  const Path path = save(setup, scratch.path());
  const auto position = train::checkpoint_position(path);
  CHECK(position.step == 6);
  CHECK(position.evaluations == setup.state().evaluations);
  CHECK(position.stopped_by == "watch");
  auto again = lora_setup();
  load(again, path);
  CHECK(again.state().evaluations == setup.state().evaluations);
  CHECK(again.state().stopped_by == "watch");
}

TEST_CASE("a state that no run could have left is refused", "[train]") {
  const ScratchFolder scratch;
  const Path path = small_checkpoint(scratch.path());
  const std::string good = read_file(path / "state.json");
  const auto refused = [&](const std::string& from, const std::string& to) {
    CAPTURE(to);
    std::string text = good;
    REQUIRE(text.find(from) != std::string::npos);
    overwrite(path / "state.json", text.replace(text.find(from), from.size(), to));
    CHECK_THROWS_AS(train::checkpoint_position(path), FormatError);
  };
  refused("\"skipped_steps\": 0", "\"skipped_steps\": 3");
  refused("\"skipped_steps\": 0", "\"skipped_steps\": -1");
  refused("\"best_step\": 0", "\"best_step\": 3");
  refused("\"without_improvement\": 0", "\"without_improvement\": 1.5");
  refused("\"best_loss\": null", "\"best_loss\": \"low\"");
  refused("\"best_step\"", "\"worst_step\"");
  refused("\"stopped_by\": \"\"", "\"stopped_by\": 3");
}

TEST_CASE("a state of a version that compared no evaluations goes on", "[train]") {
  const ScratchFolder scratch;
  const Path path = small_checkpoint(scratch.path());
  std::string text = read_file(path / "state.json");
  for (const std::string key : {"evaluations", "skipped_steps", "stopped_by"}) {
    REQUIRE(text.find('"' + key + '"') != std::string::npos);
    text.replace(text.find('"' + key + '"'), key.size() + 2, "\"unknown_" + key + '"');
  }
  overwrite(path / "state.json", text);
  const auto position = train::checkpoint_position(path);
  CHECK(position.evaluations == train::EvalHistory());
  CHECK(position.stopped_by.empty());
}

TEST_CASE("the best result is kept in checkpoints and comes back from them", "[train]") {
  const ScratchFolder scratch;
  const Path best = scratch / "best";
  scratch.write("best/adapter_config.json", "first");
  scratch.write("best/side/adapter_config.json", "beside");
  auto setup = lora_setup();
  const auto save_with = [&](int64_t step, const Path& directory) {
    train_to(setup, step);
    return save_checkpoint(scratch.path(), *setup.model, setup.state(), {.config_yaml = "run: {}\n", .best = directory}, 100);
  };
  const Path none = save_with(1, {}), with = save_with(2, best);
  CHECK_FALSE(verify_checkpoint(with));
  scratch.write("best/adapter_config.json", "second");
  CHECK_FALSE(verify_checkpoint(with));  // a copy

  train::restore_best(with, best);
  CHECK(read_file(best / "adapter_config.json") == "first");
  CHECK(read_file(best / "side/adapter_config.json") == "beside");
  train::restore_best(none, best);
  CHECK_FALSE(fs::exists(best));
  train::restore_best(none, best);
  CHECK(names_in(scratch.path()) == std::set<std::string>{"checkpoints"});
  overwrite(with / "best/adapter_config.json", "other");
  CHECK(verify_checkpoint(with));
}
