#!/usr/bin/env python3
"""Training runs: what they write, how they stop and go on, and what they refuse.

usage: runs_test.py PROGRAM SOURCE_DIR [RunsTest.TEST...]
"""
import json
import math
import os
import pathlib
import re
import shutil
import signal
import struct
import subprocess
import sys
import time

from command_line import BASE, CliTest, LORA, lora, main, PROGRAM, read_safetensors, REFERENCE, RUN_FILE, SOURCE, write_safetensors


class RunsTest(CliTest):
    def test_finetune_writes_what_it_promises(self):
        self.finetune()
        out = self.folder / "out"
        for name in ("config.yaml", "metrics.jsonl", "report.html", "adapter/adapter_config.json",
                     "adapter/adapter_model.safetensors", "checkpoints/step-4/manifest.json"):
            self.assertTrue((out / name).exists(), name)
        lines = self.metrics()
        self.assertEqual([line["step"] for line in lines], [1, 2, 3, 4])
        for key in ("loss", "lr", "grad_norm", "loss_scale", "overflow", "tokens", "targets", "step_seconds", "data_seconds",
                    "data_read_seconds", "data_transform_seconds", "copy_seconds", "tokens_per_second"):
            self.assertIn(key, lines[0])
        self.assertEqual((lines[0]["tokens"], lines[0]["targets"]), (11, 9))
        config = json.loads((out / "adapter/adapter_config.json").read_text())
        self.assertEqual((config["peft_type"], config["r"], config["target_modules"]), ("LORA", 4, ["q_proj", "v_proj"]))

    def test_steps_equal_peft(self):
        # The fixtures' batch, its padding left out.
        self.write_rows("rows.jsonl", [
            {"input_ids": [1, 12, 14, 53, 14, 16, 80, 76, 43, 88, 42, 103],
             "labels": [-100] * 3 + [53, 14, 16, 80, 76, 43, 88, 42, 103]},
            {"input_ids": [1, 122, 102, 21, 10, 101, 70, 81, 6], "labels": [-100] * 3 + [21, 10, 101, 70, 81, 6]}])
        for case, method in (("lora", "lora"), ("rslora", "lora"), ("dora", "lora"), ("lora_embedding", "lora"), ("lora_modules_to_save", "lora"),
                             ("lora_all_linear_patterns", "lora"), ("adalora", "adalora"), ("prefix", "prefix"), ("prompt", "prompt")):
            with self.subTest(case):
                expected = json.loads((REFERENCE / case / "expected.json").read_text())
                steps = expected["steps"] if case == "adalora" else [{"loss": loss} for loss in expected["step_losses"]]
                self.finetune("--set", "adapter={method: %s, r: null, lora_alpha: null, target_modules: null, init_from: %s}" % (
                    method, REFERENCE / case / "init"), "--set", f"run.output_dir={case}", "--set", f"train.max_steps={len(steps)}",
                    "--set", "train.clip_norm=0", "--set", "train.optimizer.weight_decay=0.01", "--set", "train.optimizer.no_decay=[]")
                for line, step in zip(self.metrics(case), steps, strict=True):
                    self.assertAlmostEqual(line["loss"] + line.get("reg_loss", 0), step["loss"], delta=2e-5)
                    self.assertEqual(line.get("rank_budget"), step.get("budget"))
        self.assertIn("adapter.tinit", self.finetune("--set", "adapter={method: adalora, r: null, lora_alpha: null, target_modules: null, tinit: 1, "
                                                     "init_from: %s}" % (REFERENCE / "adalora/init"), "--set", "run.output_dir=other", code=2))

    def test_the_same_run_again_is_finished(self):
        self.finetune()
        before = (self.folder / "out/adapter/adapter_model.safetensors").read_bytes()
        self.finetune()
        self.assertEqual((self.folder / "out/adapter/adapter_model.safetensors").read_bytes(), before)

    def test_a_run_that_took_all_steps_still_leaves_its_result(self):
        out = self.folder / "out"
        result = out / "adapter/adapter_model.safetensors"
        self.finetune()
        self.assertFalse((out / "unfinished").exists())
        before, lines = result.read_bytes(), self.metrics()
        for left in ("nothing", "another one"):  # what a kill behind the last checkpoint leaves of the result
            with self.subTest(left):
                (out / "report.html").unlink()
                (out / "unfinished").touch()
                result.unlink() if left == "nothing" else result.write_bytes(b"old")
                self.finetune()
                self.assertEqual(result.read_bytes(), before)
                self.assertTrue((out / "report.html").exists())
                self.assertFalse((out / "unfinished").exists())
                self.assertEqual(self.metrics(), lines)
        shutil.rmtree(out / "adapter")
        self.finetune()
        self.assertEqual(result.read_bytes(), before)

    def test_a_run_without_finite_values_can_be_looked_at_again(self):
        header, tensors = read_safetensors(LORA / "init/adapter_model.safetensors")
        huge = {name: (dtype, shape, struct.pack("<f", 1e30) * (len(data) // 4)) for name, (dtype, shape, data) in tensors.items()}
        (self.folder / "huge").mkdir()
        shutil.copy(LORA / "init/adapter_config.json", self.folder / "huge")
        write_safetensors(self.folder / "huge/adapter_model.safetensors", huge)
        self.with_method("{init_from: huge}")
        for _ in range(2):  # the second time from the checkpoint that the first one left
            self.assertIn("[step 2]", self.finetune("--set", "train.max_nonfinite=2", code=1))
        self.assertTrue((self.folder / "out/checkpoints/step-1").exists())

    def test_a_folder_of_the_metrics_may_hold_other_files(self):
        settings = ("--set", "log.metrics=logs/m.jsonl")
        (self.folder / "out/logs").mkdir(parents=True)
        (self.folder / "out/logs/mine.txt").write_text("mine")
        (self.folder / "out/logs/m.jsonl").write_text("old\n")
        self.finetune(*settings)
        self.finetune(*settings, "--overwrite")
        self.assertEqual((self.folder / "out/logs/mine.txt").read_text(), "mine")
        self.assertEqual(len((self.folder / "out/logs/m.jsonl").read_text().splitlines()), 4)
        self.finetune(*settings, "--set", "run.resume=none", code=2)

    def test_errors_do_not_drive_the_terminal(self):
        error = self.run_command("inspect", "nowhere\x1b[2J\nerror: a second line", code=1)
        self.assertNotIn("\x1b", error)
        self.assertIn("\\x1b", error)

    def test_existing_output_is_not_overwritten(self):
        self.finetune()
        self.assertIn("--overwrite", self.finetune("--set", "run.resume=none", code=2))
        self.finetune("--set", "run.resume=none", "--overwrite")
        self.run_command("merge", "--model", BASE, "--adapter", "out/adapter", "--output", "merged")
        self.run_command("merge", "--model", BASE, "--adapter", "out/adapter", "--output", "merged", code=2)

    def test_overwriting_waits_until_the_run_can_begin(self):
        self.finetune()
        adapter = self.folder / "out/adapter/adapter_model.safetensors"
        before = adapter.read_bytes()
        self.finetune("--overwrite", "--set", "data.train.path=none.jsonl", code=1)
        self.assertEqual(adapter.read_bytes(), before)
        self.finetune("--overwrite", "--set", "run.seed=1")
        self.assertNotEqual(adapter.read_bytes(), before)

    def test_values_that_are_not_finite_stop_the_run_at_the_last_good_state(self):
        # The first update makes the factors so large that the second loss is infinite.
        wild = ["--set", "train.optimizer={type: sgd, lr: 1.0e+30}", "--set", "train.clip_norm=0", "--set",
                "adapter.init_lora_weights=false", "--set", "train.on_nonfinite=stop"]
        error = self.finetune(*wild, code=1)
        self.assertIn("step 2", error)
        self.assertEqual([line["step"] for line in self.metrics()], [1])
        self.assertTrue((self.folder / "out/adapter/adapter_model.safetensors").exists())
        self.assertTrue((self.folder / "out/checkpoints/step-1/manifest.json").exists())

    def test_a_stopped_run_goes_on_bit_by_bit(self):
        long_run = ["--set", "train.max_steps=400", "--set", "adapter.lora_dropout=0.1", "--set", "log.report=false"]
        self.finetune(*long_run, "--set", "run.output_dir=whole")
        process = subprocess.Popen([PROGRAM, "finetune", "-c", "run.yaml", *long_run], cwd=self.folder,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        metrics = self.folder / "out/metrics.jsonl"
        for _ in range(600):
            if metrics.exists() and metrics.stat().st_size > 0:
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(timeout=60), 130)
        stopped_after = len(self.metrics())
        self.assertLess(stopped_after, 400)
        self.finetune(*long_run)
        self.assertEqual((self.folder / "out/adapter/adapter_model.safetensors").read_bytes(),
                         (self.folder / "whole/adapter/adapter_model.safetensors").read_bytes())
        self.assertEqual([line["loss"] for line in self.metrics()], [line["loss"] for line in self.metrics("whole")])

    def test_fast_paths_packing_and_recomputation_change_no_number(self):
        self.finetune()
        expected = [line["loss"] for line in self.metrics()]
        for name, settings in {"plain": ["run.disable_fast_paths=[all]"], "full": ["train.recompute=full"],
                               "packed": ["data.packing=true", "train.micro_batch=1"]}.items():
            with self.subTest(name):
                self.finetune("--set", f"run.output_dir={name}", *(word for s in settings for word in ("--set", s)))
                lines = self.metrics(name)
                self.assertEqual((lines[0]["tokens"], lines[0]["targets"]), (11, 9))
                self.assertGreater(lines[0]["sol_percent"], 0)
                for line, loss in zip(lines, expected, strict=True):
                    self.assertAlmostEqual(line["loss"], loss, delta=1e-5)
        self.assertIn("fused_loss", self.finetune("--set", "run.disable_fast_paths=[fused_los]", code=2))

    def test_a_fast_path_that_does_not_apply_is_named_once(self):
        result = lora("finetune", "-c", "run.yaml", "--set", "adapter.lora_dropout=0.1", cwd=self.folder)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stderr.count("fast path joined"), 1, result.stderr)
        self.assertIn("dropout", next(line for line in result.stderr.splitlines() if "fast path joined" in line))
        plain = lora("finetune", "-c", "run.yaml", "--set", "run.output_dir=other", cwd=self.folder)
        self.assertEqual(plain.stderr.count("fast path joined"), 0, plain.stderr)

    def test_a_streamed_base_trains_to_the_same_bits(self):
        def outcome(name, *settings):
            self.finetune("--set", f"run.output_dir={name}", *(word for s in settings for word in ("--set", s)))
            numbers = [(line["loss"], line["grad_norm"], line.get("eval_loss")) for line in self.metrics(name)]
            return numbers, (self.folder / name / "adapter/adapter_model.safetensors").read_bytes()

        common = ["data.eval.path=rows.jsonl", "train.eval_interval=2", "train.grad_accum=2", "adapter.lora_dropout=0.1"]
        for dtype in ("fp32", "bf16"):
            with self.subTest(dtype):
                expected = outcome(f"held_{dtype}", *common, f"model.dtype={dtype}")
                for name, *settings in (("disk", "model.offload=disk"),
                                        ("cpu", "model.offload=cpu", "train.recompute=full",
                                         "train.offload_activations=true"),
                                        ("full", "model.offload=disk", "train.recompute=full")):
                    self.assertEqual(outcome(f"{name}_{dtype}", *common, f"model.dtype={dtype}", *settings), expected)

    def test_a_streamed_run_goes_on_from_its_checkpoint_and_saves_freed_base_weights(self):
        common = ["--set", "freeze.train=[layers.0.mlp.up_proj]", "--set", "log.report=false"]
        self.finetune(*common, "--set", "run.output_dir=held")
        streamed = [*common, "--set", "model.offload=disk"]
        self.finetune(*streamed, "--set", "train.max_steps=2")
        self.finetune(*streamed)
        for name in ("adapter/adapter_model.safetensors", "model/model.safetensors"):
            self.assertEqual((self.folder / "out" / name).read_bytes(), (self.folder / "held" / name).read_bytes(), name)

    def test_offloading_says_what_it_needs(self):
        self.assertIn("recompute", self.finetune("--set", "train.offload_activations=true", code=2))
        self.write("fresh.yaml", RUN_FILE.format(base=BASE).replace(f"path: {BASE}", "arch: llama, preset: llama2-7b, offload: disk"))
        self.assertIn("model.offload", self.run_command("finetune", "-c", "fresh.yaml", code=2))
        error = self.run_command("train", "-c", "run.yaml", "--set", "adapter={method: none}", "--set", "model.offload=disk", code=2)
        self.assertIn("lora finetune", error)
        result = lora("finetune", "-c", "run.yaml", "--set", "model.offload=cpu", "--set", "train.recompute=full", "--set",
                      "train.offload_activations=true", cwd=self.folder)
        self.assertEqual(result.returncode, 0, result.stderr)
        for words in ("model.offload: cpu changes nothing here", "train.offload_activations changes nothing here"):
            self.assertEqual(result.stderr.count(words), 1, result.stderr)

    def test_pure_bf16_without_masters_goes_on_bit_by_bit(self):
        every_weight = ("-c", "run.yaml", "--set", "adapter={method: none}", "--set", "model.dtype=bf16")
        train = ("train", *every_weight, "--set", "log.report=false", "--set", "train.max_steps=8")
        results = {}
        for name, more in {"masters": (), "rounded": ("--set", "train.optimizer.master_weights=false")}.items():
            self.run_command(*train, *more, "--set", f"run.output_dir={name}")
            for steps in (5, 8):
                self.run_command(*train, *more, "--set", f"run.output_dir={name}_parts", "--set", f"train.max_steps={steps}")
            files = [(self.folder / folder / "model/model.safetensors").read_bytes() for folder in (name, f"{name}_parts")]
            self.assertEqual(files[0], files[1])
            results[name] = files[0]
            _, state = read_safetensors(self.folder / name / "checkpoints/step-8/optimizer.safetensors")
            self.assertEqual(any(key.startswith("master.") for key in state), name == "masters")
        self.assertNotEqual(results["masters"], results["rounded"])
        lines = self.metrics("rounded")
        self.assertLess(lines[-1]["loss"], lines[0]["loss"])
        self.assertIn("train.optimizer.master_weights", self.run_command(*train, "--set", "run.output_dir=rounded", "--set",
                                                                         "train.max_steps=9", code=2))
        planned = {flag: json.loads(self.run_command("plan", *every_weight, "--json", "--set", f"train.optimizer.master_weights={flag}"))
                   for flag in ("true", "false")}
        self.assertEqual(planned["true"]["optimizer_bytes"] - planned["false"]["optimizer_bytes"], 4 * self.inspect(BASE)["parameters"])

    def test_a_warm_up_longer_than_the_run_is_said(self):
        for steps, warns in ((3, 0), (4, 1)):
            said = self.log_of("--set", f"train.lr_schedule.warmup_steps={steps}", "--set", f"run.output_dir=out{steps}", "--set",
                               "log.report=false")
            self.assertEqual(said.count("warm-up should end before the run"), warns, said)

    def test_a_changed_run_file_is_not_resumed(self):
        self.finetune()
        changed = ["--set", "train.optimizer.weight_decay=0.5", "--set", "train.max_steps=6"]
        self.assertIn("train.optimizer.weight_decay", self.finetune(*changed, code=2))
        self.finetune(*changed, "--allow-changed", "train.optimizer.weight_decay")
        self.assertEqual(len(self.metrics()), 6)

    def test_beside_other_programs_threads_wait_briefly_unless_the_user_decides(self):
        # What makes libgomp's threads wait briefly is a team of more threads than cores, which sleeps.
        if not pathlib.Path("/proc/stat").exists():
            self.skipTest("no /proc")
        cores = len(os.sched_getaffinity(0))
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
        for _ in range(cores):
            other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            self.addCleanup(other.wait)
            self.addCleanup(other.kill)

        def most_threads(until, **environment):
            """Of a run, beside others, at any time before `until` of them were seen, or a few hundred steps were made."""
            process = subprocess.Popen([PROGRAM, "finetune", "-c", "run.yaml", "--overwrite", "--set", "train.max_steps=100000",
                                        "--set", "log.report=false"], cwd=self.folder, env={**plain, **environment},
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            most, metrics = 0, self.folder / "out/metrics.jsonl"
            try:
                deadline = time.monotonic() + 60
                while most < until and time.monotonic() < deadline:
                    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
                    most = max(most, int(re.search(r"Threads:\s+(\d+)", status)[1]))
                    if until == math.inf and metrics.exists() and metrics.read_text().count("\n") > 300:
                        break
                    time.sleep(0.02)
            finally:
                process.kill()
                process.wait()
            return most

        decided = most_threads(math.inf, OMP_WAIT_POLICY="passive")
        expected = decided + 1 + cores + 1  # the watch and its team
        self.assertGreaterEqual(most_threads(expected), expected)

    def test_train_from_fresh_weights(self):
        self.write("run.yaml", """
run: {output_dir: out}
model: {arch: llama, preset: tiny}
data: {format: tokens, train: {path: rows.jsonl}}
train: {max_steps: 2, micro_batch: 2}
""")
        self.run_command("train", "-c", "run.yaml")
        inspected = json.loads(self.run_command("inspect", "out/model", "--json"))
        self.assertEqual(inspected["kind"], "model")
        self.run_command("generate", "--model", "out/model", "--prompt-ids", "1", "--max-new-tokens", 2)

    def test_wrong_run_files_are_usage_errors(self):
        for setting, named in (("train.micro_bath=2", "micro_batch"), ("train.micro_batch=two", "integer"),
                               ("train.micro_batch=0", "micro_batch"), ("run.device=cuda:9", "cpu"),
                               ("adapter.target_modules=[q_prj]", "q_proj"), ("freeze.freeze=[lora_]", "train"),
                               ("run.mode=train", "mode")):
            with self.subTest(setting):
                self.assertIn(named, self.finetune("--set", setting, code=2))
        self.run_command("finetune", "-c", "none.yaml", code=2)
        for quote in "\"'":
            self.write("quote.yaml", RUN_FILE.format(base=BASE) + f"log: {{samples: 0}}\ntokenizer:\n  path: {quote}t\n")
            self.assertIn("must be YAML", self.run_command("finetune", "-c", "quote.yaml", code=2))
        self.run_command("finetune", code=2)

    def test_bad_data_and_models_fail(self):
        bad_rows = {"empty": "", "fields": '{"x": 1}\n', "json": "{\n", "vocabulary": '{"input_ids": [1, 2, 128]}\n',
                    "masked": '{"input_ids": [1, 2], "labels": [-100, -100]}\n'}
        for name, text in bad_rows.items():
            with self.subTest(name):
                self.write("rows.jsonl", text)
                self.finetune(code=1)
        self.write_rows("rows.jsonl", [{"input_ids": list(range(1, 100))}])
        self.finetune("--set", "data.on_long=error", code=1)
        self.finetune("--set", "data.train.path=none.jsonl", code=1)
        self.finetune("--set", "model.path=none", code=1)

    def test_an_adapter_of_another_model_is_refused(self):
        adapter = SOURCE / "tests/reference/peft/lora_gqa/final"
        error = self.run_command("score", "--model", BASE, "--adapter", adapter, "--input", "rows.jsonl", "--output", "s.jsonl",
                                 code=1)
        self.assertIn("k_proj", error)
        self.assertFalse((self.folder / "s.jsonl").exists())

    def test_help_has_an_example_everywhere(self):
        for command in ("train", "finetune", "generate", "score", "merge", "export", "convert", "inspect", "plan", "completion"):
            self.assertIn("Example:", self.run_command(command, "--help"))


if __name__ == "__main__":
    main()
