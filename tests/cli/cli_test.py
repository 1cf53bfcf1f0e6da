#!/usr/bin/env python3
"""The program's contract from outside: exit codes, one error line, files, resume, score, merge.

usage: cli_test.py PROGRAM SOURCE_DIR [CliTest.TEST...]
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
import tempfile
import time
import unittest

PROGRAM, SOURCE = sys.argv[1], pathlib.Path(sys.argv[2])
BASE = SOURCE / "tests/reference/peft/base"
REFERENCE = SOURCE / "tests/reference/peft"
LORA = REFERENCE / "lora"

RUN_FILE = """
run: {{output_dir: out, device: cpu, seed: 0}}
model: {{path: {base}, dtype: fp32}}
adapter: {{r: 4, lora_alpha: 8, target_modules: [q_proj, v_proj]}}
data: {{format: tokens, train: {{path: rows.jsonl, shuffle: false}}}}
train:
  max_steps: 4
  micro_batch: 2
  optimizer: {{lr: 5.0e-3}}
"""

TEXT_RUN_FILE = """
run: {{output_dir: out, device: cpu, seed: 0}}
model: {{arch: llama, vocab_size: 2000, hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2,
        max_position_embeddings: 256}}
tokenizer: {{path: {tokenizer}}}
adapter: {{method: none}}
data: {{format: adgen, train: {{path: train.jsonl}}, eval: {{path: dev.jsonl}}}}
train: {{max_steps: 3, micro_batch: 2}}
"""


def lora(*arguments, cwd=None):
    return subprocess.run([PROGRAM, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=120)


def read_safetensors(path):
    """The header, and by name (type, shape, bytes)."""
    data = path.read_bytes()
    size, = struct.unpack_from("<Q", data)
    header = json.loads(data[8:8 + size])
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            tensors[name] = (entry["dtype"], entry["shape"], data[8 + size + begin:8 + size + end])
    return header, tensors


def write_safetensors(path, tensors):
    header, offset = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    head = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + b"".join(data for _, _, data in tensors.values()))


def sentencepiece_pieces(path):
    """Texts of all pieces: field 1 of field 1 of the model's message."""
    def fields(data):
        at = 0

        def varint():
            nonlocal at
            value = shift = 0
            while True:
                byte = data[at]
                at += 1
                value |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    return value
        while at < len(data):
            tag = varint()
            kind = tag & 7
            if kind == 0:
                varint()
                continue
            size = {1: 8, 5: 4}.get(kind) or varint()
            yield tag >> 3, data[at:at + size]
            at += size
    return [next(text for number, text in fields(piece) if number == 1).decode() for field, piece in fields(path.read_bytes()) if field == 1]


class CliTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.write("run.yaml", RUN_FILE.format(base=BASE))
        self.write_rows("rows.jsonl", [{"input_ids": [1, 12, 14, 53, 14, 16, 80]}, {"input_ids": [1, 122, 102, 21]}])

    def write(self, name, text):
        (self.folder / name).write_text(text)

    def write_rows(self, name, rows):
        self.write(name, "".join(json.dumps(row) + "\n" for row in rows))

    def finetune(self, *arguments, code=0):
        return self.run_command("finetune", "-c", "run.yaml", *arguments, code=code)

    def run_command(self, *arguments, code=0):
        result = lora(*arguments, cwd=self.folder)
        self.assertEqual(result.returncode, code, result.stderr)
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        self.assertEqual(len(errors), 0 if code == 0 else 1, result.stderr)
        return errors[0] if errors else result.stdout

    def metrics(self, directory="out"):
        return [json.loads(line) for line in (self.folder / directory / "metrics.jsonl").read_text().splitlines()]

    def score(self, adapter, output="scores.jsonl"):
        extra = ["--adapter", adapter] if adapter else []
        self.run_command("score", "--model", BASE, *extra, "--input", "rows.jsonl", "--output", output, "--overwrite", "-q")
        return [json.loads(line) for line in (self.folder / output).read_text().splitlines()]

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

    def text_run(self, rows=40):
        """A run on text: the quickstart's tokenizer, a small model of its vocabulary, some of its rows."""
        lines = (SOURCE / "quickstart/data/train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        self.write("train.jsonl", "".join(lines[:rows]))
        self.write("dev.jsonl", "".join(lines[rows - 1:rows + 9]))
        self.write("text.yaml", TEXT_RUN_FILE.format(tokenizer=SOURCE / "quickstart/base/tokenizer.model"))

    def records(self, name="train", directory="out"):
        folder = self.folder / directory / "records" / name
        return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}

    def test_prepared_records_train_as_the_rows_they_were_made_of(self):
        self.text_run()
        printed = self.run_command("prepare", "-c", "text.yaml", "--shard-size", "2000")
        self.assertIn("wrote 40 rows", printed)
        self.assertIn("wrote 10 rows", printed)
        self.assertGreater(len(self.records()), 5)
        self.run_command("train", "-c", "text.yaml", "--set", "run.output_dir=plain")
        self.run_command("train", "-c", "text.yaml", "--set", "data.format=records", "--set", "data.train.path=out/records/train",
                         "--set", "data.eval.path=out/records/eval")
        self.assertEqual([line["loss"] for line in self.metrics()], [line["loss"] for line in self.metrics("plain")])
        self.assertIn("40 rows", self.run_command("prepare", "-c", "text.yaml", "--shard-size", "2000"))
        self.assertIn("--overwrite", self.run_command("prepare", "-c", "text.yaml", code=2))
        self.run_command("prepare", "-c", "text.yaml", "--overwrite")
        self.assertEqual(len(self.records()), 3)
        self.run_command("train", "-c", "text.yaml", "--set", "data.format=records", "--set", "data.train.path=out/records/none",
                         "--set", "run.output_dir=none", code=1)

    def test_a_killed_preparation_goes_on(self):
        self.text_run(3000)
        command = ("prepare", "-c", "text.yaml", "--set", "data.eval={}", "--shard-size", "50000", "--set", "run.threads=1")
        self.run_command(*command, "--set", "run.output_dir=whole")
        expected = self.records(directory="whole")
        for attempt in range(8):
            process = subprocess.Popen([PROGRAM, *command], cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(0.1 * (attempt + 1))
            process.kill()
            process.wait()
        self.run_command(*command)
        self.assertEqual(self.records(), expected)

    def test_damaged_records_are_refused_by_name(self):
        self.text_run()
        self.run_command("prepare", "-c", "text.yaml")
        shard = self.folder / "out/records/train/shard-00000.records"
        content = bytearray(shard.read_bytes())
        content[200] ^= 1
        shard.write_bytes(content)
        from_records = ("train", "-c", "text.yaml", "--set", "data.format=records", "--set", "data.train.path=out/records/train", "--set",
                        "data.eval={}")
        error = self.run_command(*from_records, code=1)
        self.assertIn("shard-00000.records", error)
        self.assertIn("byte 64", error)
        content[200] ^= 1
        shard.write_bytes(content)
        self.assertIn("tokens", self.run_command(*from_records, "--set", "data.max_length=16", code=1))
        self.assertIn("tokenizer", self.run_command(*from_records, "--set", "model.vocab_size=1400", "--set", "tokenizer.path=%s" % (
            SOURCE / "tests/reference/glm_tokenizer/v2/ice_text.model"), code=1))

    def test_evaluation_rows_of_the_training_data_are_named(self):
        self.text_run()
        for policy, code, rows in (("warn", 0, 10), ("drop", 0, 9), ("error", 1, None)):
            result = lora("prepare", "-c", "text.yaml", "--set", f"data.on_overlap={policy}", "--set", f"run.output_dir={policy}", cwd=self.folder)
            self.assertEqual(result.returncode, code, result.stderr)
            self.assertIn("1 of 10", result.stderr)
            if rows:
                self.assertIn("13 characters", result.stderr)
                shown = json.loads(self.run_command("inspect", f"{policy}/records/eval", "--json"))
                self.assertEqual(shown["rows"], rows)
                self.assertEqual(sum(bar["rows"] for bar in shown["lengths"]), rows)
                self.assertIn("#", self.run_command("inspect", f"{policy}/records/eval"))
            result = lora("train", "-c", "text.yaml", "--set", f"data.on_overlap={policy}", "--set", f"run.output_dir={policy}-run", cwd=self.folder)
            self.assertEqual(result.returncode, code, result.stderr)
            self.assertIn("1 of 10", result.stderr)

    def test_rows_of_a_chatglm_have_one_start_token(self):
        self.text_run()
        glm = SOURCE / "tests/reference/glm_tokenizer/v2/ice_text.model"
        self.run_command("prepare", "-c", "text.yaml", "--set", f"tokenizer.path={glm}", "--set", "model.vocab_size=1344")
        self.assertEqual(json.loads(self.run_command("inspect", "out/records/train", "--json"))["rows"], 40)
        self.assertEqual(json.loads(self.run_command("inspect", glm, "--json"))["bos_id"], 1004)
        self.write_rows("tokens.jsonl", [{"input_ids": [9, 1001, 1004, 9, 1005]}, {"input_ids": [9, 1001, 9]}])
        error = self.run_command("prepare", "-c", "text.yaml", "--set", f"tokenizer.path={glm}", "--set", "model.vocab_size=1344", "--set",
                                 "data.format=tokens", "--set", "data.train.path=tokens.jsonl", "--overwrite", code=1)
        self.assertIn("tokens.jsonl:2", error)

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

    def test_inspect_tells_how_far_an_adapter_moves_the_weights(self):
        for name, module in (("lora", "model.layers.0.self_attn.q_proj"), ("lora_embedding", "model.embed_tokens")):
            inspected = json.loads(self.run_command("inspect", LORA.parent / name / "final", "--json"))
            self.assertGreater(inspected["adapter"]["update_norms"][module], 0)

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

    METHODS = {
        "tokens_alone": "{method: trainable_tokens, trainable_token_indices: [12, 14, 2]}",
        "tokens": "{r: 4, target_modules: [q_proj], trainable_token_indices: {embed_tokens: [12, 14], lm_head: [53]}}",
        "lora": "{r: 4, target_modules: [q_proj]}",
        "dora": "{r: 4, use_dora: true, target_modules: [q_proj, embed_tokens]}",
        "pissa": "{r: 4, init_lora_weights: pissa, target_modules: [q_proj]}",
        "eva": "{r: 3, init_lora_weights: eva, eva_config: {rho: 2.0}, target_modules: all-linear}",
        "loftq": "{r: 4, init_lora_weights: loftq, quantization: {bits: 4, double: true}, target_modules: [q_proj, up_proj]}",
        "loftq_twice": "{r: 4, init_lora_weights: loftq, loftq_config: {loftq_bits: 4, loftq_iter: 2}, quantization: {bits: 4}}",
        "adalora": "{method: adalora, init_r: 4, target_r: 2, tinit: 1, tfinal: 2, total_step: 6}",
        "ia3": "{method: ia3}",
        "prefix": "{method: prefix, num_virtual_tokens: 3, prefix_projection: true}",
        "ptuning_v2": "{method: ptuning_v2, pre_seq_len: 3}",
        "prompt": "{method: prompt, num_virtual_tokens: 3}",
        "ptuning": "{method: ptuning, num_virtual_tokens: 3, encoder_reparameterization_type: LSTM, encoder_hidden_size: 8}",
        "bottleneck": "{method: bottleneck, preset: houlsby, reduction_factor: 8, learn_scaling: true}",
    }

    def with_method(self, adapter):
        text = RUN_FILE.format(base=BASE)
        self.write("run.yaml", re.sub("adapter: .*", lambda _: f"adapter: {adapter}", text))

    def test_every_method_trains_goes_on_bit_by_bit_and_scores(self):
        before = self.score(None)
        for name, adapter in self.METHODS.items():
            with self.subTest(name):
                self.with_method(adapter)
                self.finetune("--set", "train.max_steps=6", "--set", f"run.output_dir={name}")
                parts = ("--set", f"run.output_dir={name}_parts")
                self.finetune("--set", "train.max_steps=4", *parts)
                self.finetune("--set", "train.max_steps=6", *parts)
                self.assertEqual([line["loss"] for line in self.metrics(name)], [line["loss"] for line in self.metrics(f"{name}_parts")])
                files = [self.folder / out / "adapter/adapter_model.safetensors" for out in (name, f"{name}_parts")]
                self.assertEqual(files[0].read_bytes(), files[1].read_bytes())
                self.assertNotEqual(self.score(f"{name}/adapter"), before)
                ids = ("generate", "--model", BASE, "--adapter", f"{name}/adapter", "--prompt-ids", "1,12,14", "--temperature", 0,
                       "--max-new-tokens", 6, "--json")
                guessed, plain = self.run_command(*ids), self.run_command(*ids, "--prompt-lookup-num-tokens", 0)
                self.assertEqual(json.loads(guessed)["token_ids"], json.loads(plain)["token_ids"])
                self.assertIn("method", self.inspect(f"{name}/adapter")["adapter"])

    SEVERAL = {
        "prefix_and_parallel": "{method: prefix, num_virtual_tokens: 3, prefix_projection: true, "
                               "also: {parallel: {method: bottleneck, preset: parallel, reduction_factor: 8}}}",
        "three": "{r: 4, lora_dropout: 0.1, target_modules: [q_proj], also: {prompt: {method: ptuning, num_virtual_tokens: 3}, "
                 "ranks: {method: adalora, init_r: 4, target_r: 2, tinit: 1, tfinal: 2, total_step: 6, target_modules: [v_proj]}}}",
    }

    def test_several_methods_train_together_and_go_on_bit_by_bit(self):
        freeze = ("--set", "freeze.train=['layers.1.input_layernorm']")
        for name, adapter in self.SEVERAL.items():
            with self.subTest(name):
                self.with_method(adapter)
                self.finetune("--set", "train.max_steps=6", "--set", f"run.output_dir={name}", *freeze)
                parts = ("--set", f"run.output_dir={name}_parts", *freeze)
                self.finetune("--set", "train.max_steps=4", *parts)
                self.finetune("--set", "train.max_steps=6", *parts)
                self.assertEqual([line["loss"] for line in self.metrics(name)], [line["loss"] for line in self.metrics(f"{name}_parts")])
                files = sorted((self.folder / name / "adapter").rglob("*.safetensors"))
                self.assertEqual(len(files), adapter.count("method") + (name == "three"))
                for file in files:
                    other = self.folder / f"{name}_parts" / file.relative_to(self.folder / name)
                    self.assertEqual(file.read_bytes(), other.read_bytes(), file)
                    self.assertIn("method", self.inspect(file.parent)["adapter"])
                self.assertEqual(len(self.inspect(f"{name}/adapter")["adapters"]), len(files) - 1)
                self.run_command("finetune", "-c", f"{name}/config.yaml")  # finished
                self.assertIn("adapter.also", self.finetune(*parts, "--set", "adapter.also.more.method=ia3", "--set",
                                                            "train.max_steps=8", code=2))

    def test_adapters_that_were_trained_together_are_used_together(self):
        self.with_method("{method: prefix, num_virtual_tokens: 3, also: {parallel: {method: bottleneck, preset: parallel}}}")
        self.finetune()
        names = ("out/adapter", "out/adapter/parallel")
        losses = {}
        for chosen in ((), names[:1], names[1:], names):
            options = [word for name in chosen for word in ("--adapter", name)]
            self.run_command("score", "--model", BASE, *options, "--input", "rows.jsonl", "--output", "s.jsonl", "--overwrite", "-q")
            rows = [json.loads(line) for line in (self.folder / "s.jsonl").read_text().splitlines()]
            losses[chosen] = sum(row["loss"] for row in rows)
        self.assertEqual(len(set(losses.values())), 4)
        self.assertEqual(min(losses, key=losses.get), names)
        self.run_command("generate", "--model", BASE, "--adapter", names[0], "--adapter", names[1], "--prompt-ids", "1,12",
                         "--max-new-tokens", 3)
        twice = ("--model", BASE, "--adapter", names[0], "--adapter", names[0])
        self.assertIn("one prefix may be active at a time", self.run_command("generate", *twice, "--prompt-ids", "1", code=2))
        self.assertIn("no weight can hold", self.run_command("merge", "--model", BASE, "--adapter", names[1], "--adapter", names[0], "--output", "m",
                                                 code=2))
        self.assertFalse((self.folder / "m").exists())

    def test_several_that_weights_can_hold_are_merged_as_one(self):
        self.with_method("{r: 4, target_modules: [q_proj, v_proj], also: {more: {r: 2, target_modules: [v_proj, o_proj]}}}")
        self.finetune()
        both = ("--adapter", "out/adapter", "--adapter", "out/adapter/more")
        self.run_command("merge", "--model", BASE, *both, "--output", "merged")
        report = json.loads((self.folder / "merged/merge_report.json").read_text())
        self.assertEqual(len(report["update_norms"]), 6)
        self.assertLess(report["max_logit_change"], 1e-5)
        self.assertGreater(report["adapter_effect"]["max_logit_change"], 1e-3)
        self.assertEqual(report["adapter"], list(both[1::2]))

    def test_methods_that_exclude_each_other_are_refused(self):
        for adapter, reason in (("{method: prefix, also: {other: {method: ptuning_v2, pre_seq_len: 3}}}", "one prefix may be active at a time"),
                                ("{method: prompt, also: {other: {method: ptuning}}}", "one prompt of embeddings"),
                                ("{target_modules: [v_proj], also: {scales: {method: ia3}}}", "must not share a layer"),
                                ("{method: prefix, also: {my_lora: {r: 2}}}", "must not contain"),
                                ("{method: prefix, also: {../up: {r: 2}}}", "must have a name of letters")):
            self.with_method(adapter)
            self.assertIn(reason, self.finetune(code=2))
            self.assertFalse((self.folder / "out/adapter").exists())

    def test_first_tokens_are_targets_behind_virtual_embeddings(self):
        for name, targets in (("lora", 9), ("prefix", 9), ("prompt", 11), ("ptuning", 11)):
            for packing in ("false", "true"):
                with self.subTest(name, packing=packing):
                    self.with_method(self.METHODS[name])
                    micro_batch = 1 if packing == "true" else 2
                    self.finetune("--set", f"run.output_dir={name}_{packing}", "--set", f"data.packing={packing}", "--set",
                                  f"train.micro_batch={micro_batch}")
                    self.assertEqual({line["targets"] for line in self.metrics(f"{name}_{packing}")}, {targets})
            plain, packed = (self.metrics(f"{name}_{packing}") for packing in ("false", "true"))
            for one, other in zip(plain, packed, strict=True):
                self.assertAlmostEqual(one["loss"], other["loss"], delta=1e-5)

    def log_of(self, *arguments):
        result = lora("finetune", "-c", "run.yaml", *arguments, cwd=self.folder)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stderr

    def test_eva_writes_the_ranks_that_it_found_once(self):
        self.with_method(self.METHODS["eva"])
        said = self.log_of("--set", "train.max_steps=2")
        self.assertEqual(said.count("EVA: ranks from"), 1, said)
        config = json.loads((self.folder / "out/adapter/adapter_config.json").read_text())
        self.assertTrue(config["rank_pattern"])
        self.assertEqual(sum(config["rank_pattern"].get(name, 3) for name in config["target_modules"]), 14 * 3)
        for name in config["target_modules"]:
            self.assertAlmostEqual(config["alpha_pattern"].get(name, 8) / config["rank_pattern"].get(name, 3), 8 / 3)
        self.assertEqual(self.log_of("--set", "train.max_steps=4").count("EVA:"), 0)
        self.assertEqual(self.inspect("out/adapter")["adapter"]["rank_pattern"], config["rank_pattern"])
        plan = json.loads(self.run_command("plan", "-c", "run.yaml", "--json"))
        self.assertGreater(plan["adapters_bytes"], 0)
        unmasked = ("--set", "run.output_dir=unmasked", "--set", "adapter.eva_config.use_label_mask=false")
        self.finetune(*unmasked)
        self.write_rows("rows.jsonl", [{"input_ids": [1, 12]}, {"input_ids": [1, 14]}])
        self.assertIn("counted positions", self.finetune("--set", "run.output_dir=few", code=1))

    def test_loftq_saves_the_base_that_only_it_has(self):
        self.with_method(self.METHODS["loftq_twice"])
        self.assertIn("4 weights quantised anew", self.log_of())
        config = json.loads((self.folder / "out/adapter/adapter_config.json").read_text())
        self.assertEqual(config["base_model_name_or_path"], str((self.folder / "out/base").resolve()))
        self.assertEqual(config["loftq_config"], {"loftq_bits": 4, "loftq_iter": 2})
        self.assertIn("model.layers.0.self_attn.q_proj.weight.absmax", (self.folder / "out/base/model.safetensors").read_bytes().decode(errors="replace"))
        self.run_command("score", "--model", "out/base", "--adapter", "out/adapter", "--input", "rows.jsonl", "--output", "own.jsonl")
        plain = lora("score", "--model", BASE, "--adapter", "out/adapter", "--input", "rows.jsonl", "--output", "plain.jsonl", cwd=self.folder)
        self.assertIn("makes up for the rounding of a base in 4 bits", plain.stderr)
        self.assertNotEqual((self.folder / "own.jsonl").read_text(), (self.folder / "plain.jsonl").read_text())
        # A killed run leaves its base; the same command begins again.
        for left in ("adapter", "checkpoints"):
            shutil.rmtree(self.folder / "out" / left)
        (self.folder / "out/report.html").unlink()
        self.finetune()

    def test_inits_that_lack_what_they_need_are_refused(self):
        for adapter, words in {
            "{init_lora_weights: loftq}": "found no adapter.quantization",
            "{init_lora_weights: loftq, quantization: {bits: 8}, loftq_config: {loftq_bits: 4}}": "must be adapter.quantization.bits = 8",
            "{loftq_config: {loftq_iter: 2}}": "belongs to adapter.init_lora_weights loftq",
            "{init_lora_weights: pissa, eva_config: {rho: 2}}": "belongs to adapter.init_lora_weights eva",
            "{init_lora_weights: eva, eva_config: {rho: 0.5}}": "adapter.eva_config.rho must be at least 1",
        }.items():
            with self.subTest(adapter):
                self.with_method(adapter)
                self.assertIn(words, self.finetune(code=2))
        self.with_method(self.METHODS["loftq"])
        self.assertIn("before they are quantised", self.finetune("--set", f"model.path={REFERENCE / 'bnb4_dq'}", code=2))

    def evaluation(self, rows=6):
        quickstart = SOURCE / "quickstart"
        lines = (quickstart / "data/dev.jsonl").read_text().splitlines()
        self.write("train.jsonl", "\n".join(lines[-8:]) + "\n")
        self.write("dev.jsonl", "\n".join(lines[:rows]) + "\n")
        self.write("run.yaml", f"""
run: {{output_dir: out, device: cpu, seed: 0}}
model: {{path: {quickstart / "base"}, dtype: fp32}}
adapter: {{r: 4, target_modules: [q_proj, v_proj]}}
data: {{format: adgen, train: {{path: train.jsonl}}, eval: {{path: dev.jsonl}}, max_source_length: 48, max_target_length: 64}}
train: {{max_steps: 2, micro_batch: 2, optimizer: {{lr: 1.0e-2}}}}
eval: {{metrics: [rouge, bleu4, exact_match], max_new_tokens: 8}}
generate: {{temperature: 0, max_new_tokens: 8, batch_size: 3}}
log: {{samples: 0}}
""")
        return quickstart / "base", [json.loads(line) for line in lines[:rows]]

    def test_eval_measures_loss_and_answers(self):
        base, rows = self.evaluation()
        self.finetune()
        result = json.loads(self.run_command("eval", "-c", "run.yaml", "--json"))
        self.assertEqual(result, json.loads((self.folder / "out/eval.json").read_text()))
        self.write_rows("scored.jsonl", [{"prompt": row["content"], "completion": row["summary"]} for row in rows])
        self.run_command("score", "--model", base, "--adapter", "out/adapter", "--input", "scored.jsonl", "--output", "s.jsonl", "--dtype", "fp32", "-q")
        scores = [json.loads(line) for line in (self.folder / "s.jsonl").read_text().splitlines()]
        targets = sum(score["num_targets"] for score in scores)
        self.assertEqual((result["rows"], result["targets"]), (6, targets))
        self.assertAlmostEqual(result["loss"], -sum(score["sum_logprob"] for score in scores) / targets, delta=1e-4)
        self.assertAlmostEqual(result["perplexity"], math.exp(result["loss"]), delta=1e-6)
        self.assertEqual([name for name in result if "-" in name], ["rouge-1", "rouge-2", "rouge-l", "bleu-4", "exact-match"])
        predictions = [json.loads(line) for line in (self.folder / "out/predictions.jsonl").read_text().splitlines()]
        self.assertEqual([one["row"] for one in predictions], [1, 2, 3, 4, 5, 6])
        for one, row in zip(predictions, rows, strict=True):
            self.assertEqual((one["prompt"], one["reference"]), (row["content"], row["summary"]))
            alone = self.run_command("generate", "--model", base, "--adapter", "out/adapter", "--dtype", "fp32", "--prompt", row["content"],
                                     "--max-new-tokens", 8, "--temperature", 0)
            self.assertEqual(one["prediction"], alone.rstrip("\n"))
        self.assertIn("existing output", self.run_command("eval", "-c", "run.yaml", code=2))
        self.finetune("--set", "run.output_dir=again")
        for name in ("eval.json", "predictions.jsonl"):
            shutil.copy(self.folder / "out" / name, self.folder / "again")
        self.finetune("--set", "run.output_dir=again", "--overwrite")
        self.assertFalse((self.folder / "again/eval.json").exists())  # it was of another adapter
        loss_alone = json.loads(self.run_command("eval", "-c", "run.yaml", "--json", "--set", "eval.metrics=[]", "--overwrite"))
        self.assertEqual(loss_alone, {name: result[name] for name in ("loss", "perplexity", "rows", "targets")})
        self.assertNotEqual(json.loads(self.run_command("eval", "-c", "run.yaml", "--json", "--set", "run.output_dir=base_alone", "--set",
                                                        "eval.metrics=[]"))["loss"], result["loss"])

    def test_answers_of_a_file_are_scored_as_those_of_a_model(self):
        self.evaluation()
        result = json.loads(self.run_command("eval", "-c", "run.yaml", "--json"))
        texts = [json.loads(line) for line in (self.folder / "out/predictions.jsonl").read_text().splitlines()]
        self.write_rows("factory.jsonl", [{"prompt": "", "predict": one["prediction"], "label": one["reference"]} for one in texts])
        for file in ("out/predictions.jsonl", "factory.jsonl"):
            scored = json.loads(self.run_command("eval", "-c", "run.yaml", "--json", "--predictions", file, "--set", "run.output_dir=scored",
                                                 "--set", "model.path=nowhere", "--overwrite"))
            self.assertEqual(scored, {name: value for name, value in result.items() if name == "rows" or "-" in name})
            self.assertEqual(scored, json.loads((self.folder / "scored/eval.json").read_text()))
        for lines, reason in (("", "is empty"), ('{"prediction": "a"}\n', "bad.jsonl:1"), ('{"prediction": "a", "reference": "b"}\n[1]\n', "bad.jsonl:2")):
            self.write("bad.jsonl", lines)
            self.assertIn(reason, self.run_command("eval", "-c", "run.yaml", "--predictions", "bad.jsonl", "--set", "run.output_dir=bad", code=1))
        self.run_command("eval", "-c", "run.yaml", "--predictions", "nowhere.jsonl", "--set", "run.output_dir=bad", code=1)
        self.assertFalse((self.folder / "bad/eval.json").exists())

    def test_the_adgen_recipe_runs_from_rows_to_predictions(self):
        rows = pathlib.Path(os.environ.get("LORA_TEST_DATA", "/nowhere")) / "data/adgen/dev.json"
        if not rows.exists():
            print("skipped: ADGEN rows are looked for below LORA_TEST_DATA")
            return
        lines = rows.read_text().splitlines()
        self.write("train.json", "\n".join(lines[:970]) + "\n")
        self.write("dev.json", "\n".join(lines[970:]) + "\n")
        self.write("run.yaml", f"""
run: {{output_dir: out, device: cpu, seed: 0}}
model: {{arch: glm, vocab_size: 1344, hidden_size: 32, num_layers: 2, num_attention_heads: 4, inner_hidden_size: 128,
        max_sequence_length: 512, mask_token_id: 1000, gmask_token_id: 1001, bos_token_id: 1004, eos_token_id: 1005, pad_token_id: 3}}
adapter: {{method: none}}
tokenizer: {{path: {SOURCE / "tests/reference/glm_tokenizer/v2/ice_text.model"}}}
data: {{format: adgen, train: {{path: train.json}}, eval: {{path: dev.json}}, max_source_length: 64, max_target_length: 64}}
train: {{max_steps: 3, micro_batch: 8}}
eval: {{max_new_tokens: 8}}
generate: {{temperature: 0, max_new_tokens: 8}}
log: {{samples: 0}}
""")
        self.run_command("train", "-c", "run.yaml", "--set", "run.output_dir=base")
        model = ("--set", "model={path: base/model, arch: null, " + ", ".join(f"{key}: null" for key in (
            "vocab_size", "hidden_size", "num_layers", "num_attention_heads", "inner_hidden_size", "max_sequence_length", "mask_token_id",
            "gmask_token_id", "bos_token_id", "eos_token_id", "pad_token_id")) + "}", "--set", "adapter={method: lora, r: 4}")
        self.assertIn("970", self.run_command("prepare", "-c", "run.yaml"))
        records = self.folder / "out/records"
        self.finetune(*model, "--set", "run.output_dir=tuned", "--set", "data.format=records", "--set", f"data.train.path={records / 'train'}",
                      "--set", f"data.eval.path={records / 'eval'}", "--set", "train.max_steps=-1", "--set", "train.epochs=1",
                      "--set", "data.loader.drop_last=false")
        self.assertEqual(len(self.metrics("tuned")), 122)  # 970 rows, 8 a step: none is dropped
        result = json.loads(self.run_command("eval", "-c", "run.yaml", *model, "--adapter", "tuned/adapter", "--json", "--set", "run.output_dir=eval"))
        self.assertEqual(result["rows"], 100)
        self.run_command("predict", "-c", "run.yaml", *model, "--adapter", "tuned/adapter", "--set", "run.output_dir=predict")
        predictions = [json.loads(line) for line in (self.folder / "predict/predictions.jsonl").read_text().splitlines()]
        self.assertEqual([one["prompt"] for one in predictions], [json.loads(line)["content"] for line in lines[970:]])

    def test_predictions_go_on_where_they_were_stopped(self):
        self.evaluation(rows=24)
        self.run_command("predict", "-c", "run.yaml", "--set", "run.output_dir=whole")
        whole = (self.folder / "whole/predictions.jsonl").read_text()
        self.assertEqual(len(whole.splitlines()), 24)
        part = self.folder / "parts/predictions.jsonl.part"
        words = [PROGRAM, "predict", "-c", "run.yaml", "--set", "run.output_dir=parts", "--set", "generate.batch_size=1"]
        process = subprocess.Popen(words, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and (not part.exists() or part.read_text().count("\n") < 4):
            time.sleep(0.002)
        process.kill()
        process.wait()
        if part.exists():  # else it was faster than the signal
            with open(part, "a") as file:
                file.write('{"row": 3, "prompt": "cut')
        result = lora("predict", "-c", "run.yaml", "--set", "run.output_dir=parts", cwd=self.folder)
        self.assertEqual(result.returncode, 0 if part.exists() or "existing" not in result.stderr else 2, result.stderr)
        self.assertEqual((self.folder / "parts/predictions.jsonl").read_text(), whole)
        self.assertFalse(part.exists())

    def test_evaluation_refuses_what_it_cannot_do(self):
        self.evaluation()
        for words, reason in ((("--set", "data.eval.path=null"), "data.eval.path must be given"),
                              (("--set", "eval.metrics=[rogue]"), "did you mean rouge?"),
                              (("--set", "eval.segmenter=dict"), "eval.dictionary"),
                              (("--set", "generate.num_beams=2", "--set", "generate.temperature=1"), "generate.num_beams")):
            self.assertIn(reason, self.run_command("eval", "-c", "run.yaml", *words, code=2))
        self.run_command("eval", "-c", "run.yaml", "--adapter", "nowhere", code=1)
        self.run_command("predict", "-c", "run.yaml", "--set", "data.format=tokens", code=2)
        self.assertIn("leave room", self.finetune("--set", "adapter={method: prefix, target_modules: null, r: null, num_virtual_tokens: 255}", code=2))

    GLM = SOURCE / "tests/reference/glm"

    def test_chatglm_is_tuned_scored_merged_and_generates(self):
        config = json.loads((self.GLM / "config.json").read_text())
        gmask, sop, eop = (config[name] for name in ("gmask_token_id", "bos_token_id", "eos_token_id"))
        rows = [[5, 6, gmask, sop, 7, 8, 9, eop], [5, 9, 6, gmask, sop, 8, 7, eop]]
        self.write_rows("rows.jsonl", [{"input_ids": row, "labels": [-100] * (row.index(sop) + 1) + row[row.index(sop) + 1:]} for row in rows])
        for name, adapter in (("lora", "{r: 4}"), ("ptuning_v2", "{method: ptuning_v2, pre_seq_len: 3}"), ("all", "{r: 2, target_modules: all-linear}")):
            with self.subTest(name):
                self.write("run.yaml", RUN_FILE.format(base=self.GLM).replace("{r: 4, lora_alpha: 8, target_modules: [q_proj, v_proj]}", adapter))
                self.finetune("--set", f"run.output_dir={name}", "--set", "train.max_steps=8")
                losses = [line["loss"] for line in self.metrics(name)]
                self.assertLess(losses[-1], losses[0])
                self.run_command("score", "--model", self.GLM, "--adapter", f"{name}/adapter", "--input", "rows.jsonl", "--output", f"{name}.jsonl", "-q")
                self.run_command("generate", "--model", self.GLM, "--adapter", f"{name}/adapter", "--prompt-ids", f"5,6,{gmask},{sop}",
                                 "--max-new-tokens", 3)
        config = json.loads((self.folder / "lora/adapter/adapter_config.json").read_text())
        self.assertEqual(config["target_modules"], ["query_key_value"])
        self.run_command("merge", "--model", self.GLM, "--adapter", "lora/adapter", "--output", "merged")
        for folder, adapter in ((self.GLM, ("--adapter", "lora/adapter")), ("merged", ())):
            self.run_command("score", "--model", folder, *adapter, "--input", "rows.jsonl", "--output", "s.jsonl", "--overwrite", "-q")
            scores = [json.loads(line)["sum_logprob"] for line in (self.folder / "s.jsonl").read_text().splitlines()]
            if adapter:
                expected = scores
        for score, other in zip(scores, expected, strict=True):
            self.assertAlmostEqual(score, other, delta=1e-4)
        self.write_rows("rows.jsonl", [{"input_ids": [5, 6, 7]}])
        self.assertIn("<sop>", self.finetune("--set", "run.output_dir=bad", code=1))
        plan = json.loads(self.run_command("plan", "-c", "run.yaml", "--memory", "1GiB", "--json"))
        self.assertTrue(plan["fits"])
        self.assertGreater(plan["activations_bytes"], 0)

    def plan_of(self, model, adapter, *settings):
        self.write_rows("rows.jsonl", [{"input_ids": [5, 6, 7]}])
        self.write("plan.yaml", "run: {output_dir: out}\nmodel: %s\nadapter: %s\ndata: {format: tokens, max_length: 128, train: {path: elsewhere.jsonl}}\n" % (model, adapter))
        return json.loads(self.run_command("plan", "-c", "plan.yaml", "--json", "--device", "cuda", "--memory", "24GiB", *settings))

    def test_chatglm_6b_is_planned_without_its_weights(self):
        # Published: 6,173,286,400 numbers with a shared head, 130,528 x 4096 more with its own. r = 8: 28 x 8 x (4096 + 12288).
        untied, tied, lora = 6_707_929_088, 6_173_286_400, 3_670_016
        glm = "{arch: glm, preset: chatglm-6b, dtype: bf16}"
        plan = self.plan_of(glm, "{r: 8}")
        self.assertEqual((plan["parameters"], plan["trainable_parameters"]), (untied + lora, lora))
        plan = self.plan_of(glm.replace("}", ", tie_word_embeddings: true}"), "{r: 8}")
        self.assertEqual((plan["parameters"], plan["trainable_parameters"]), (tied + lora, lora))
        full = self.plan_of(glm, "{method: none}")
        self.assertEqual((full["parameters"], full["trainable_parameters"], full["fits"]), (untied, untied, False))
        # Norms are fp32: 57 of them with two vectors of 4096.
        self.assertEqual(full["weights_bytes"], 2 * untied + 2 * 57 * 2 * 4096)

        # A directory with config.json alone, as the small model's is here.
        (self.folder / "bare").mkdir()
        shutil.copy(self.GLM / "config.json", self.folder / "bare")
        small = json.loads((self.GLM / "config.json").read_text())
        layers, hidden, inner, vocabulary = (small[name] for name in ("num_layers", "hidden_size", "inner_hidden_size", "vocab_size"))
        layer = 4 * hidden * hidden + 2 * hidden * inner + 4 * hidden + inner + hidden + 4 * hidden
        heads = 1 if small.get("tie_word_embeddings") else 2
        numbers = layers * layer + heads * vocabulary * hidden + 2 * hidden
        for name, adapter in {"lora": "{r: 4}", "ptuning_v2": "{method: ptuning_v2, pre_seq_len: 3}", "adalora": "{method: adalora, init_r: 4, target_r: 2}",
                              "4 bits": "{r: 4, quantization: {bits: 4, double: true}}", "full": "{method: none}"}.items():
            for settings in ((), ("train.recompute=full",), ("data.packing=true",)):
                with self.subTest(name, settings=settings):
                    plan = self.plan_of("{path: bare}", adapter, *(part for one in settings for part in ("--set", one)))
                    added = 0 if name == "full" else plan["trainable_parameters"]
                    self.assertEqual(plan["parameters"] - added, numbers)
                    self.assertGreater(plan["peak_bytes"], 0)

    def test_a_loaded_chatglm_takes_how_it_computes_from_the_run_file(self):
        # The reference has the loss of both ways to compute; an adapter that does nothing yet leaves it the model's own.
        expected = json.loads((self.GLM / "expected.json").read_text())
        _, tensors = read_safetensors(self.GLM / "expected.safetensors")
        ids, labels = (struct.unpack("<32q", tensors[name][2]) for name in ("in.input_ids", "in.labels_shifted"))
        end = json.loads((self.GLM / "config.json").read_text())["eos_token_id"]
        rows = []
        for first in (0, 16):
            row = list(ids[first:first + 16])
            length = row.index(end) + 1
            rows.append({"input_ids": row[:length], "labels": ([-100] + list(labels[first:first + 15]))[:length]})
        self.write_rows("rows.jsonl", rows)
        self.write("run.yaml", RUN_FILE.format(base=self.GLM).replace("target_modules: [q_proj, v_proj]", "lora_dropout: 0"))
        ways = {"layers_fp32rope": ("rope_inv_freq_dtype=fp32", "residual_alpha_layers=2"), "alpha28_fp16rope": ("rope_inv_freq_dtype=fp16", "residual_alpha_layers=28")}
        for name, words in ways.items():
            self.finetune("--overwrite", "--set", "train.max_steps=1", *(part for word in words for part in ("--set", f"model.{word}")))
            self.assertAlmostEqual(self.metrics()[0]["loss"], float(expected[f"loss_valid_tokens_{name}"]), delta=2e-6)
            written = (self.folder / "out/config.yaml").read_text()
            for word in words:
                self.assertIn(word.replace("=", ": "), written)
        self.assertIn("model.num_layers", self.finetune("--overwrite", "--set", "model.num_layers=1", code=2))
        self.assertIn("fp16", self.finetune("--overwrite", "--set", "model.rope_inv_freq_dtype=bf16", code=2))
        self.write("run.yaml", RUN_FILE.format(base=BASE))
        for word in ("rope_inv_freq_dtype=fp16", "residual_alpha_layers=28"):
            error = self.finetune("--overwrite", "--set", f"model.{word}", code=2)
            self.assertIn(f"model.{word.split('=')[0]}", error)
            self.assertIn("llama", error)

    def test_ranks_are_in_the_metrics_and_the_report(self):
        self.with_method(self.METHODS["adalora"])
        self.finetune("--set", "train.max_steps=6")
        lines = self.metrics()
        self.assertEqual([line["rank_budget"] for line in lines], [16, 10, 8, 8, 8, 8])
        self.assertEqual([sum(line["ranks"]) if "ranks" in line else None for line in lines], [None, 10, 8, 8, None, None])
        self.assertTrue(all(line["reg_loss"] > 0 for line in lines))
        self.assertIn("<h2>Ranks</h2>", (self.folder / "out/report.html").read_text())
        self.assertEqual(sum(self.inspect("out/adapter")["adapter"]["ranks"].values()), 8)

    def test_methods_that_no_weight_can_hold_are_not_merged(self):
        for name in ("prefix", "bottleneck"):
            self.with_method(self.METHODS[name])
            self.finetune("--set", f"run.output_dir={name}", "--set", "train.max_steps=1")
            error = self.run_command("merge", "--model", BASE, "--adapter", f"{name}/adapter", "--output", "merged", code=2)
            self.assertIn(name, error)
            self.assertFalse((self.folder / "merged").exists())

    def test_keys_of_another_method_are_refused(self):
        self.with_method("{method: prefix, r: 8}")
        self.assertIn("adapter.r belongs to adapter.method lora", self.finetune(code=2))
        self.with_method("{method: adalora, tinit: 9}")
        self.assertIn("tinit must be less than total_step - tfinal", self.finetune(code=2))

    def test_an_adapter_starts_from_a_saved_one_of_its_method(self):
        self.with_method(self.METHODS["prompt"])
        self.finetune("--set", "run.output_dir=first")
        self.with_method("{method: prompt, init_from: first/adapter}")
        self.finetune("--set", "run.output_dir=second")
        self.assertLess(self.metrics("second")[0]["loss"], self.metrics("first")[0]["loss"])
        self.with_method("{method: prefix, init_from: first/adapter}")
        self.assertIn("must be that of adapter.init_from, prompt", self.finetune(code=2))
        self.with_method(self.METHODS["ptuning"])
        self.finetune("--set", "run.output_dir=network")
        self.with_method("{method: ptuning, init_from: network/adapter}")
        self.assertIn("network", self.finetune(code=2))

    def test_the_run_files_of_the_methods_run(self):
        if not (SOURCE / "quickstart/base/model.safetensors").exists():
            print("skipped: quickstart/base is not made yet")
            return
        for file in sorted((SOURCE / "configs/methods").glob("*.yaml")):
            with self.subTest(file.name):
                shorter = ("--set", "adapter.tfinal=1", "--set", "adapter.tinit=0") if file.stem == "adalora" else ()
                self.run_command("finetune", "-c", file, "--set", f"run.output_dir={file.stem}", "--set", "train.max_steps=2",
                                 "--set", "log.samples=0", "--set", "data.eval.path=null", *shorter)
                self.assertTrue((self.folder / file.stem / "adapter/adapter_config.json").exists())

    SMALL_LLAMA = "model={path: null, arch: llama, vocab_size: 2000, hidden_size: 16, intermediate_size: 24, num_hidden_layers: 2, " \
                  "num_attention_heads: 2, max_position_embeddings: 512}"
    TOKENIZER = f"tokenizer.path={SOURCE / 'quickstart/base/tokenizer.model'}"

    def test_the_alpaca_lora_recipe_runs_on_a_shrunk_model(self):
        rows = [{"instruction": f"Add {i} and one.", "input": f"{i}" if i % 2 else "", "output": f"{i + 1}"} for i in range(128)]
        self.write("alpaca.json", json.dumps(rows))
        self.run_command("finetune", "-c", SOURCE / "configs/alpaca-lora-7b.yaml", "--set", self.SMALL_LLAMA, "--set", self.TOKENIZER, "--set",
                         "data.train.path=alpaca.json", "--set", "run.output_dir=out", "--set", "train.max_steps=2", "--set", "log.samples=0")
        lines = self.metrics()
        self.assertEqual(len(lines), 2)
        self.assertEqual([line["lr"] for line in lines], [0, 3e-4 / 100])
        config = json.loads((self.folder / "out/adapter/adapter_config.json").read_text())
        self.assertEqual((config["r"], config["lora_alpha"], config["lora_dropout"], config["target_modules"]), (8, 16, 0.05, ["q_proj", "v_proj"]))
        # One step is 128 rows: the answers' tokens and an end for each.
        self.assertGreaterEqual(lines[0]["targets"], 2 * 128)
        self.assertEqual(lines[0]["targets"], lines[1]["targets"])

    GLM_TOKENIZER = SOURCE / "tests/reference/glm_tokenizer/v2/ice_text.model"
    SMALL_GLM = {"num_layers": 2, "vocab_size": 1344, "hidden_size": 32, "num_attention_heads": 4, "inner_hidden_size": 64,
                 "max_sequence_length": 1024, "mask_token_id": 1000, "gmask_token_id": 1001, "bos_token_id": 1004, "eos_token_id": 1005,
                 "pad_token_id": 3}

    def small_glm(self):
        """The directory of a ChatGLM of two layers with its tokenizer, as the published ones are laid out."""
        fields = ", ".join(f"{name}: {value}" for name, value in self.SMALL_GLM.items())
        self.write("base.yaml", f"""
run: {{output_dir: base, seed: 0}}
model: {{arch: glm, {fields}}}
adapter: {{method: none}}
tokenizer: {{path: {self.GLM_TOKENIZER}}}
data: {{format: adgen, train: {{path: adgen.json}}}}
train: {{max_steps: 1}}
log: {{samples: 0}}
""")
        self.write_rows("adgen.json", [{"content": f"类型#裙*颜色#{color}", "summary": f"这条{color}色的裙子"} for color in "红黄蓝绿白黑紫灰" * 4])
        self.run_command("train", "-c", "base.yaml")
        self.assertTrue((self.folder / "base/model/ice_text.model").exists())
        return "base/model"

    def run_two_steps(self, command, name, *settings):
        """Runs one of configs/ as it is, but for its model and data; returns its metrics and, with an adapter, its config."""
        self.run_command(command, "-c", SOURCE / "configs" / f"{name}.yaml", "--set", f"run.output_dir={name}", "--set", "train.max_steps=2",
                         "--set", "log.samples=0", *settings)
        lines = self.metrics(name)
        self.assertEqual([line["step"] for line in lines], [1, 2])
        file = self.folder / name / "adapter/adapter_config.json"
        return lines, json.loads(file.read_text()) if file.exists() else None

    def test_the_run_files_of_chatglm_6b_run_on_a_shrunk_model(self):
        shrunk = ("--set", f"model.path={self.small_glm()}", "--set", "data.train.path=adgen.json")
        first = {}  # learning rates of a warm-up of 100 steps to 5e-5
        for name, more in (("full", ()), ("lora", ()), ("adalora", ("--set", "adapter.tinit=0", "--set", "adapter.tfinal=1"))):
            with self.subTest(name):
                lines, first[name] = self.run_two_steps("train" if name == "full" else "finetune", f"glm-6b-{name}", *shrunk, *more)
                self.assertEqual([line["lr"] for line in lines], [0, 5e-5 / 100])
                self.assertEqual(lines[0]["loss_scale"], 65536)  # a step that overflows may halve it
        self.assertTrue((self.folder / "glm-6b-full/model/config.json").exists())
        lora = first["lora"]
        self.assertEqual((lora["r"], lora["lora_alpha"], lora["lora_dropout"], lora["target_modules"]), (8, 32, 0.1, ["query_key_value"]))
        self.assertEqual((first["adalora"]["init_r"], first["adalora"]["target_r"]), (12, 8))
        lines, prefix = self.run_two_steps("finetune", "glm-6b-ptuning-v2", *shrunk)
        self.assertEqual([line["lr"] for line in lines], [2e-2, 1e-2])
        self.assertEqual(prefix["num_virtual_tokens"], 128)
        # <sop> is a target besides: 16 more in a step of 16 rows.
        other, _ = self.run_two_steps("finetune", "glm-6b-ptuning-v2", *shrunk, "--set", "data.train_on_sop=false", "--overwrite", "--set",
                                      "run.resume=none")
        self.assertEqual([line["targets"] - less["targets"] for line, less in zip(lines, other, strict=True)], [16, 16])

        rows = [{"content": "类型#裙", "summary": "裙子"}, {"content": "颜色#红", "summary": "红色"}, {"content": "", "summary": "空"}]
        self.write_rows("dev.json", rows)
        model = ("--set", f"model.path={'base/model'}", "--set", "data.eval.path=dev.json", "--adapter", "glm-6b-lora/adapter")
        result = json.loads(self.run_command("eval", "-c", SOURCE / "configs/glm-6b-eval.yaml", *model, "--set", "run.output_dir=eval", "--json",
                                             "--set", "eval.max_new_tokens=4"))
        self.assertEqual(result["rows"], 2)
        self.assertLessEqual({"loss", "perplexity"}, set(result))
        self.run_command("predict", "-c", SOURCE / "configs/glm-6b-predict.yaml", *model, "--set", "run.output_dir=predict", "--set",
                         "generate.max_new_tokens=4")
        predictions = [json.loads(line) for line in (self.folder / "predict/predictions.jsonl").read_text().splitlines()]
        self.assertEqual([one["prompt"] for one in predictions], ["类型#裙", "颜色#红"])

    def test_a_run_file_of_chatglm_6b_runs_on_fresh_weights(self):
        self.small_glm()
        fields = ", ".join(f"{name}: {value}" for name, value in self.SMALL_GLM.items() if name != "num_layers")
        self.run_two_steps("finetune", "glm-6b-lora", "--set", f"model={{path: null, arch: glm, {fields}}}", "--set", "model.num_layers=2", "--set",
                           f"tokenizer.path={self.GLM_TOKENIZER}", "--set", "data.train.path=adgen.json")

    def test_the_run_files_of_llama_2_run_on_a_shrunk_model(self):
        rows = [{"instruction": f"Add {i} and one.", "input": "", "output": f"{i + 1}"} for i in range(64)]
        self.write("alpaca.json", json.dumps(rows))
        self.write("base.yaml", f"""
run: {{output_dir: base, seed: 0}}
model: {{arch: llama, vocab_size: 2000, hidden_size: 64, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2,
        max_position_embeddings: 512}}
adapter: {{method: none}}
tokenizer: {{path: {SOURCE / "quickstart/base/tokenizer.model"}}}
data: {{format: alpaca, train: {{path: alpaca.json}}}}
train: {{max_steps: 1}}
log: {{samples: 0}}
""")
        self.run_command("train", "-c", "base.yaml")
        for size in ("7b", "13b", "70b"):
            with self.subTest(size):
                lines, config = self.run_two_steps("finetune", f"llama2-{size}-lora", "--set", "model.path=base/model", "--set",
                                                   "data.train.path=alpaca.json")
                self.assertEqual((config["r"], config["lora_alpha"], config["target_modules"]), (8, 32, ["q_proj", "v_proj"]))
                self.assertEqual([line["lr"] for line in lines], [0, 5e-5 / 100])
                self.assertGreaterEqual(lines[0]["targets"], 2 * 32)  # a step of 32 rows in each: an answer and its end
        self.assertIn("nf4", (self.folder / "llama2-70b-lora/config.yaml").read_text())

    CHATS = [{"conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": f"color of {thing}?"},
                                {"from": "gpt", "value": color}, {"from": "human", "value": "sure?"}, {"from": "gpt", "value": "yes"}]}
             for thing, color in (("snow", "white"), ("coal", "black"), ("blood", "red"))]
    OWN_TEMPLATE = '{system: "{content}|", user: "Q: {content}\\nA:", assistant: " {content}{eos}"}'

    def chat_run(self, template, output="out", rows=None):
        self.write_rows("chats.jsonl", rows or self.CHATS)
        self.write("chat.yaml", f"""
run: {{output_dir: {output}, device: cpu}}
model: {{path: {self.QUICK}, dtype: fp32}}
adapter: {{r: 4, target_modules: [q_proj, v_proj]}}
data: {{format: sharegpt, template: {template}, train: {{path: chats.jsonl}}, eval: {{path: chats.jsonl}}}}
train: {{max_steps: 2, micro_batch: 3}}
eval: {{metrics: [exact_match], max_new_tokens: 4}}
generate: {{temperature: 0, max_new_tokens: 4}}
log: {{samples: 0}}
""")

    def test_conversations_train_and_are_answered_in_their_template(self):
        targets = {}
        for name, template in (("llama2", "llama2"), ("vicuna", "vicuna"), ("chatglm", "chatglm"), ("own", self.OWN_TEMPLATE)):
            with self.subTest(name):
                self.chat_run(template, name)
                self.run_command("finetune", "-c", "chat.yaml")
                targets[name] = self.metrics(name)[0]["targets"]
                self.run_command("eval", "-c", "chat.yaml")
                predictions = [json.loads(line) for line in (self.folder / name / "predictions.jsonl").read_text().splitlines()]
                self.assertEqual([(one["prompt"], one["reference"]) for one in predictions], [("sure?", "yes")] * 3)
                # A row of one question is what `generate` asks in the same template, and what a run file says is one.
                one = [{"conversations": chat["conversations"][:3]} for chat in self.CHATS]
                self.chat_run(template, f"{name}_one", one)
                self.run_command("predict", "-c", "chat.yaml", "--adapter", f"{name}/adapter")
                predictions = [json.loads(line) for line in (self.folder / f"{name}_one/predictions.jsonl").read_text().splitlines()]
                for form in ((template,) if name != "own" else ()) + (f"{name}/config.yaml",):
                    text = self.run_command("generate", "--model", self.QUICK, "--adapter", f"{name}/adapter", "--dtype", "fp32", "--template", form,
                                            "--system", "Be brief.", "--prompt", "color of snow?", "--temperature", 0, "--max-new-tokens", 4)
                    self.assertEqual(text.rstrip("\n"), predictions[0]["prediction"])
        self.assertLess(targets["chatglm"], targets["vicuna"])  # the last answers alone

    def test_tokens_that_are_kept_are_those_of_one_template(self):
        for template, kept in (("vicuna", False), ("vicuna", True), ("llama2", False), (self.OWN_TEMPLATE, False), (self.OWN_TEMPLATE, True)):
            self.chat_run(template)
            result = lora("finetune", "-c", "chat.yaml", "--overwrite", "--set", "data.cache_dir=tokens", "--set", "data.eval.path=null", cwd=self.folder)
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertEqual("from the cache" in result.stderr, kept, template)

    def test_conversations_and_templates_that_are_none_are_refused(self):
        for rows, words in (([{"from": "tool", "value": "x"}], "roles must be system, user (human) or assistant (gpt)"),
                            ([], "must have a user message"),
                            ([{"from": "gpt", "value": "x"}, {"from": "human", "value": "y"}], "message 1 after it is of assistant instead of user"),
                            ([{"from": "human", "value": "x"}], "must have an answer"), ([{"from": "human", "value": " "}], "it is empty")):
            with self.subTest(words):
                self.chat_run("vicuna", rows=[*self.CHATS, {"conversations": rows}])
                error = self.run_command("finetune", "-c", "chat.yaml", code=1)
                self.assertIn("chats.jsonl:4]", error)
                self.assertIn(words, error)
        result = lora("finetune", "-c", "chat.yaml", "--set", "data.on_bad_row=skip", cwd=self.folder)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("4 rows, 0 truncated, 1 bad", result.stderr)
        for template, words in (("vicunna", "did you mean vicuna?"), ('{user: "x"}', "template.user must hold {content} once"),
                                ('{user: "{contnt}"}', "did you mean {content}?"), ("{usr: x}", "did you mean user?")):
            with self.subTest(template):
                self.chat_run(template)
                self.assertIn(words, self.run_command("finetune", "-c", "chat.yaml", code=2))
        self.chat_run("vicuna")
        self.assertIn("form of conversations", self.run_command("finetune", "-c", "chat.yaml", "--set", "data.format=adgen", code=2))
        ask = ("generate", "--model", self.QUICK)
        self.assertIn("did you mean vicuna?", self.run_command(*ask, "--prompt", "x", "--template", "vicunna", code=2))
        self.assertIn("--prompt-ids", self.run_command(*ask, "--prompt-ids", "1", "--template", "vicuna", code=2))

    def test_baichuan_is_trained_merged_and_planned_under_its_own_names(self):
        self.write("fresh.yaml", """
run: {output_dir: base}
model: {arch: baichuan, preset: tiny, num_hidden_layers: 1}
data: {format: tokens, train: {path: rows.jsonl}}
train: {max_steps: 1, micro_batch: 2}
""")
        self.run_command("train", "-c", "fresh.yaml")
        base = self.folder / "base/model"
        names = read_safetensors(base / "model.safetensors")[1]
        self.assertIn("model.layers.0.self_attn.W_pack.weight", names)
        self.assertEqual(json.loads((base / "config.json").read_text())["model_type"], "baichuan")
        self.write("run.yaml", RUN_FILE.format(base=base).replace(", target_modules: [q_proj, v_proj]", ""))
        self.finetune()
        config = json.loads((self.folder / "out/adapter/adapter_config.json").read_text())
        self.assertEqual(config["target_modules"], ["W_pack"])
        self.assertIn("base_model.model.model.layers.0.self_attn.W_pack.lora_A.weight", read_safetensors(self.folder / "out/adapter/adapter_model.safetensors")[1])
        self.run_command("merge", "--model", base, "--adapter", "out/adapter", "--output", "merged")
        self.assertEqual(set(read_safetensors(self.folder / "merged/model.safetensors")[1]), set(names))
        self.run_command("convert", "--input", base, "--output", "half", "--dtype", "bf16")
        self.assertEqual(set(read_safetensors(self.folder / "half/model.safetensors")[1]), set(names))
        self.assertGreater(self.plan()["peak_bytes"], 0)
        self.assertIn("W_pack", self.run_command("export", "--model", base, "--adapter", "out/adapter", "--to", "gguf", "--output", "a.gguf", code=1))
        self.finetune("--set", "run.output_dir=few", "--set", "adapter.quantization.bits=4")

    GLM = SOURCE / "tests/reference/glm"

    def glm_with_tokenizer(self):
        shutil.copytree(self.GLM, self.folder / "glm")
        shutil.copy(SOURCE / "tests/reference/glm_tokenizer/v2/ice_text.model", self.folder / "glm")
        (self.folder / "glm/tokenizer_config.json").write_text("{}")
        return self.folder / "glm"

    def test_chatglm_is_converted_tensor_by_tensor(self):
        base = self.glm_with_tokenizer()
        before = read_safetensors(base / "model.safetensors")[1]
        self.assertIn("would convert", self.run_command("convert", "--input", base, "--output", "dry", "--dtype", "bf16", "--dry-run"))
        self.assertFalse((self.folder / "dry").exists())
        said = self.run_command("convert", "--input", base, "--output", "shards", "--shard-size", "20KB")
        count = sum(math.prod(shape) for _, shape, _ in before.values())
        self.assertIn(f"{count:,} parameters, 2 layers, fp32", said)
        shards = sorted((self.folder / "shards").glob("model-*.safetensors"))
        self.assertGreater(len(shards), 2)
        after = {}
        for shard in shards:
            after.update(read_safetensors(shard)[1])
        self.assertEqual(after, before)
        for name in ("ice_text.model", "tokenizer_config.json"):
            self.assertEqual((self.folder / "shards" / name).read_bytes(), (base / name).read_bytes())
        self.assertIn("bf16", self.run_command("convert", "--input", base, "--output", "half", "--dtype", "bf16"))
        types = {name: kind for name, (kind, _, _) in read_safetensors(self.folder / "half/model.safetensors")[1].items()}
        self.assertEqual({name for name, kind in types.items() if kind == "F32"}, {name for name in types if "layernorm" in name})
        self.run_command("convert", "--input", base, "--output", "bits", "--quantize", "nf4")
        config = json.loads((self.folder / "bits/config.json").read_text())
        self.assertEqual((config["model_type"], config["quantization_config"]["bnb_4bit_quant_type"]), ("chatglm", "nf4"))
        self.run_command("convert", "--input", "bits", "--output", "plain")
        self.assertEqual(set(read_safetensors(self.folder / "plain/model.safetensors")[1]), set(before))
        self.write("tokens.txt", "word\n")
        self.assertIn("chatglm, whose special tokens", self.run_command("convert", "--input", base, "--output", "grown", "--add-tokens",
                                                                        "tokens.txt", code=2))
        self.assertFalse((self.folder / "grown").exists())

    def test_a_chatglm_directory_is_shown(self):
        shown = json.loads(self.run_command("inspect", "--json", self.glm_with_tokenizer()))
        tensors = read_safetensors(self.GLM / "model.safetensors")[1]
        self.assertEqual((shown["kind"], shown["model_type"], shown["layers"], shown["tokenizer"]), ("model", "chatglm", 2, True))
        self.assertEqual(shown["parameters"], sum(math.prod(shape) for _, shape, _ in tensors.values()))

    def glm_run(self):
        """Rows with the reference's [gMASK] 31, <sop> 34 and <eop> 35."""
        self.write_rows("rows.jsonl", [{"input_ids": [5, 6, 31, 34, 7, 8, 35], "labels": [-100] * 4 + [7, 8, 35]},
                                       {"input_ids": [9, 31, 34, 10, 35], "labels": [-100] * 3 + [10, 35]}])
        self.write("run.yaml", RUN_FILE.format(base=self.GLM).replace("target_modules: [q_proj, v_proj]", "fused_rows: [q, v]")
                   .replace("lr: 5.0e-3", "lr: 5.0e-3, weight_decay: 0.1, no_decay: []"))

    def factor_rows(self, directory):
        """The rows of every lora_B by part: of 4 heads q, k and v of 8 rows each."""
        rows = {"q": [], "k": [], "v": []}
        for name, (_, shape, data) in read_safetensors(self.folder / directory / "adapter/adapter_model.safetensors")[1].items():
            if name.endswith("lora_B.weight"):
                self.assertEqual(shape, [96, 4])
                for row in range(96):
                    rows["qkv"[row // 8 % 3]].append(data[16 * row:16 * (row + 1)])
        return rows

    def test_only_the_named_rows_of_a_fused_projection_train(self):
        self.glm_run()
        zero = bytes(16)
        result = lora("finetune", "-c", "run.yaml", cwd=self.folder)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("trainable params: 768", result.stdout + result.stderr)  # 2 layers, rank 4, 32 columns of A, 64 rows of B
        rows = self.factor_rows("out")
        self.assertEqual(set(rows["k"]), {zero})
        self.assertNotIn(zero, rows["q"] + rows["v"])
        config = (self.folder / "out/adapter/adapter_config.json").read_text()
        self.assertEqual(json.loads(config)["target_modules"], ["query_key_value"])
        self.assertNotIn("fused", config)
        self.assertIn("fused_rows", (self.folder / "out/config.yaml").read_text())
        self.finetune("--set", "run.output_dir=parts", "--set", "train.max_steps=2")  # in two goes
        self.finetune("--set", "run.output_dir=parts")
        self.assertEqual(self.factor_rows("parts"), rows)
        self.finetune("--set", "run.output_dir=more", "--set", f"adapter.init_from={self.folder}/out/adapter")
        self.assertEqual(set(self.factor_rows("more")["k"]), {zero})
        self.assertNotEqual(self.factor_rows("more"), rows)
        self.finetune("--set", "run.output_dir=bits", "--set", "adapter.quantization={bits: 4}")
        self.assertEqual(set(self.factor_rows("bits")["k"]), {zero})
        self.run_command("merge", "--model", self.GLM, "--adapter", "out/adapter", "--output", "merged")

    def test_rows_that_cannot_be_chosen_are_refused(self):
        self.glm_run()
        for setting, words in (("adapter.fused_rows=[x]", "must be one of q, k, v"), ("adapter.fused_rows=[]", "must name some"),
                               ("adapter.use_dora=true", "use_dora"), ("adapter.bias=lora_only", "bias: none"),
                               ("adapter.init_lora_weights=pissa", "true and gaussian"),
                               ("adapter={method: ia3, r: null, lora_alpha: null}", "belongs to adapter.method lora"),
                               ("adapter.target_modules=[dense]", "found none that does")):
            with self.subTest(setting):
                self.assertIn(words, self.finetune("--set", setting, code=2))
        self.finetune("--set", "adapter.fused_rows=null")
        self.assertIn("must be zero", self.finetune("--set", "run.output_dir=next", "--set", f"adapter.init_from={self.folder}/out/adapter", code=2))
        self.write("run.yaml", RUN_FILE.format(base=BASE))
        self.assertIn("found none that does", self.finetune("--set", "adapter.fused_rows=[q]", "--set", "run.output_dir=llama", code=2))

    QUICK = SOURCE / "quickstart/base"

    def add_tokens(self, *arguments, tokens="<ad>\n类型#\nzebra\n", base=None, output="grown", code=0):
        self.write("tokens.txt", tokens)
        return self.run_command("convert", "--add-tokens", "tokens.txt", "--input", base or self.QUICK, "--output", output, *arguments, code=code)

    def pieces_of(self, model, text):
        """Ids and scores of a text: prompts are encoded with the model's own tokenizer."""
        self.write_rows("texts.jsonl", [{"text": text}])
        self.run_command("score", "--model", model, "--input", "texts.jsonl", "--output", "texts_out.jsonl", "--overwrite", "-q")
        return json.loads((self.folder / "texts_out.jsonl").read_text())

    def untied_with_spare_rows(self, spare):
        """The quick start's base with a head of its own, and rows that no piece has."""
        header, tensors = read_safetensors(self.QUICK / "model.safetensors")
        dtype, shape, data = tensors["model.embed_tokens.weight"]
        row = len(data) // shape[0]
        longer = (dtype, [shape[0] + spare, shape[1]], data + bytes(row * spare))
        tensors["model.embed_tokens.weight"] = longer
        tensors["lm_head.weight"] = (dtype, longer[1], b"".join(data[i:i + row] for i in range(len(data) - row, -1, -row)) + bytes(row * spare))
        base = self.folder / "untied"
        base.mkdir()
        write_safetensors(base / "model.safetensors", tensors)
        config = json.loads((self.QUICK / "config.json").read_text())
        (base / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False, "vocab_size": shape[0] + spare}))
        shutil.copy(self.QUICK / "tokenizer.model", base)
        return base

    def test_tokens_are_added_to_tokenizer_embedding_and_head(self):
        if not (self.QUICK / "model.safetensors").exists():
            print("skipped: quickstart/base is not made yet")
            return
        said = self.add_tokens()
        self.assertIn("3 new tokens, ids 2000 to 2002, rows mean; rows of embedding and head: 2000 -> 2003", said)
        config = json.loads((self.folder / "grown/config.json").read_text())
        self.assertEqual((config["vocab_size"], config["tie_word_embeddings"], config["dtype"]), (2003, True, "bfloat16"))
        _, before = read_safetensors(self.QUICK / "model.safetensors")
        _, after = read_safetensors(self.folder / "grown/model.safetensors")
        dtype, shape, table = after.pop("model.embed_tokens.weight")
        old = before.pop("model.embed_tokens.weight")[2]
        self.assertEqual((dtype, shape), ("BF16", [2003, 192]))
        self.assertEqual(table[:len(old)], old)
        self.assertEqual(after, before)
        # Old texts keep their numbers; a text with a token has fewer positions.
        self.assertEqual(self.pieces_of("grown", "蓝色的裤子")["num_targets"], self.pieces_of(self.QUICK, "蓝色的裤子")["num_targets"])
        self.assertLess(self.pieces_of("grown", "类型#裤")["num_targets"], self.pieces_of(self.QUICK, "类型#裤")["num_targets"])
        # Sharded, in another type, padded, as a dry run.
        self.add_tokens("--shard-size", "500KB", "--dtype", "fp32", "--pad-vocab-to-multiple-of", 64, output="sharded")
        self.assertEqual(json.loads((self.folder / "sharded/config.json").read_text())["vocab_size"], 2048)
        self.add_tokens(base="sharded", tokens="another\n", output="again")
        config = json.loads((self.folder / "again/config.json").read_text())
        self.assertEqual(config["vocab_size"], 2048)  # there was room
        self.assertIn("would convert", self.add_tokens("--dry-run", output="nothing"))
        self.assertFalse((self.folder / "nothing").exists())

    def test_new_rows_are_means_of_old_pieces_or_random_by_seed(self):
        if not (self.QUICK / "model.safetensors").exists():
            return
        base = self.untied_with_spare_rows(5)
        said = self.add_tokens("--dtype", "fp32", tokens="类型#\n<ad>\n", base=base)
        self.assertIn("2005 -> 2005", said)
        _, tensors = read_safetensors(self.folder / "grown/model.safetensors")

        def rows(name):
            _, shape, data = tensors[name]
            return [struct.unpack_from(f"<{shape[1]}f", data, 4 * shape[1] * i) for i in range(shape[0])]

        # The pieces of the first token are 类型 and #, whose ids the vocabulary says.
        pieces = sentencepiece_pieces(self.QUICK / "tokenizer.model")
        ids = [pieces.index("类型"), pieces.index("#")]
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            table = rows(name)
            mean = [sum(table[i][k] for i in ids) / 2 for k in range(192)]
            self.assertLess(max(abs(a - b) for a, b in zip(table[2000], mean)), 1e-6, name)
            self.assertEqual(set(table[2002] + table[2004]), {0.0})  # the spare rows that are left
        random = {}
        for name, seed in (("one", 1), ("same", 1), ("two", 2)):
            self.add_tokens("--dtype", "fp32", "--new-rows", "random", "--seed", seed, base=base, output=name)
            _, tensors = read_safetensors(self.folder / name / "model.safetensors")
            random[name] = rows("model.embed_tokens.weight")
        self.assertEqual(random["one"], random["same"])
        self.assertNotEqual(random["one"][2000:], random["two"][2000:])
        old = [x for row in random["one"][:2000] for x in row]
        new = [x for row in random["one"][2000:2003] for x in row]
        deviation = (sum(x * x for x in new) / len(new)) ** 0.5
        self.assertAlmostEqual(deviation / (sum(x * x for x in old) / len(old)) ** 0.5, 1, delta=0.15)

    def test_wrong_tokens_leave_nothing(self):
        if not (self.QUICK / "model.safetensors").exists():
            return
        for tokens, what in (("", "found none"), ("a b\n", "must not hold spaces"), ("x1\nx1\n", "must come once"),
                             ("</s>\n", "must not be in the vocabulary"), ("x" * 300 + "\n", "at most 256 bytes")):
            with self.subTest(what):
                self.assertIn(what, self.add_tokens(tokens=tokens, code=1))
                self.assertFalse((self.folder / "grown").exists())
        self.assertIn("must be mean or random", self.add_tokens("--new-rows", "zero", code=2))
        self.assertIn("must be made a multiple", self.add_tokens("--pad-vocab-to-multiple-of", 0, code=2))
        self.assertIn("then convert the result", self.add_tokens("--quantize", "nf4", code=2))
        self.assertIn("found none at", self.add_tokens(base=BASE, code=1))
        self.assertEqual([path for path in self.folder.iterdir() if "tmp" in path.name or path.name == "grown"], [])

    def test_files_of_transformers_gain_the_tokens_or_stop_it(self):
        if not (self.QUICK / "model.safetensors").exists():
            return
        base = self.folder / "base"
        shutil.copytree(self.QUICK, base)
        (base / "added_tokens.json").write_text('{"<pad>": 2000}')
        self.assertIn("<pad>", self.add_tokens(base=base, code=1))
        self.assertFalse((self.folder / "grown").exists())
        self.add_tokens(base=base, tokens="<pad>\nzebra\n")
        self.assertEqual(json.loads((self.folder / "grown/added_tokens.json").read_text()), {"<pad>": 2000, "zebra": 2001})

    def test_stages_train_one_after_another_and_go_on(self):
        if not (self.QUICK / "model.safetensors").exists():
            return
        self.run_command("convert", "--add-tokens", SOURCE / "configs/new_tokens.txt", "--input", self.QUICK, "--output", "grown")

        def run(output, *more, code=0):
            return self.run_command("finetune", "-c", SOURCE / "configs/new_tokens.yaml", "--set", "model.path=grown", "--set",
                                    f"run.output_dir={output}", "--set", "log.samples=0", "--set", "data.eval.path=null", "--set",
                                    "stages.embeddings.train.max_steps=3", *more, code=code)

        run("out", "--set", "stages.lora.train.max_steps=4", "--set", "stages.lora.train.lr_schedule.type=constant")
        self.assertEqual([line["step"] for line in self.metrics("out/embeddings")], [1, 2, 3])
        self.assertEqual(len(self.metrics("out/lora")), 4)
        for name in ("config.yaml", "adapter/adapter_config.json", "embeddings/report.html", "lora/report.html", "lora/config.yaml"):
            self.assertTrue((self.folder / "out" / name).exists(), name)
        _, first = read_safetensors(self.folder / "out/embeddings/adapter/adapter_model.safetensors")
        _, last = read_safetensors(self.folder / "out/adapter/adapter_model.safetensors")
        rows = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
        self.assertEqual(last[rows][1], [20, 192])
        self.assertIn("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", last)
        self.assertNotEqual(last[rows][2], first["base_model.model.model.embed_tokens.trainable_tokens_delta"][2])
        self.assertEqual(json.loads((self.folder / "out/adapter/adapter_config.json").read_text())["trainable_token_indices"], list(range(2000, 2020)))

        # What was learned is kept: rows that the second stage freezes are those of the first.
        run("frozen", "--set", "stages.lora.train.max_steps=1", "--set", "stages.lora.freeze.freeze=[trainable_tokens_delta]")
        _, frozen = read_safetensors(self.folder / "frozen/adapter/adapter_model.safetensors")
        self.assertEqual(frozen[rows][2], first["base_model.model.model.embed_tokens.trainable_tokens_delta"][2])

        # Again: finished. In parts: the same bits. From its own config.yaml: the same bits.
        before = (self.folder / "out/adapter/adapter_model.safetensors").read_bytes()
        constant = ("--set", "stages.lora.train.lr_schedule.type=constant")
        run("out", "--set", "stages.lora.train.max_steps=4", *constant)
        run("parts", "--set", "stages.lora.train.max_steps=2", *constant)
        run("parts", "--set", "stages.lora.train.max_steps=4", *constant)
        self.run_command("finetune", "-c", "out/config.yaml", "--set", "run.output_dir=repeated")
        for name in ("out", "parts", "repeated"):
            self.assertEqual((self.folder / name / "adapter/adapter_model.safetensors").read_bytes(), before, name)

        # An earlier stage does not train on under a later one; another file does not go on; --overwrite starts anew.
        more = ("--set", "stages.embeddings.train.max_steps=5")
        self.assertIn("must be finished before the next", run("out", "--set", "stages.lora.train.max_steps=4", *constant, *more, code=2))
        self.assertIn("adapter.r", run("out", "--set", "stages.lora.adapter.r=4", code=2))
        run("out", "--set", "stages.lora.train.max_steps=4", *constant, *more, "--overwrite")
        self.assertEqual(len(self.metrics("out/embeddings")), 5)
        # The result on the grown base, and merged.
        self.write_rows("rows.jsonl", [{"text": "类型#裤*颜色#蓝色"}])
        scores = {}
        self.run_command("merge", "--model", "grown", "--adapter", "out/adapter", "--output", "merged", "--dtype", "fp32")
        for name, words in {"beside": ["grown", "--adapter", "out/adapter", "--dtype", "fp32"], "merged": ["merged"]}.items():
            self.run_command("score", "--model", *words, "--input", "rows.jsonl", "--output", f"{name}.jsonl", "-q")
            scores[name] = json.loads((self.folder / f"{name}.jsonl").read_text())["logprobs"]
        self.assertLess(max(abs(a - b) for a, b in zip(scores["beside"], scores["merged"])), 1e-4)

    def test_stages_leave_the_whole_run_file_before_the_first_is_done(self):
        self.write("staged.yaml", RUN_FILE.format(base=BASE).replace("adapter: {r: 4, lora_alpha: 8, target_modules: [q_proj, v_proj]}", """
stages:
  - {name: first, adapter: {r: 2}, train: {max_steps: 100000}}
  - {name: second, adapter: {r: 2}}
"""))
        process = subprocess.Popen([PROGRAM, "finetune", "-c", "staged.yaml"], cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        metrics = self.folder / "out/first/metrics.jsonl"
        try:
            for _ in range(600):
                if process.poll() is not None or metrics.exists() and metrics.stat().st_size > 0:
                    break
                time.sleep(0.05)
        finally:
            process.kill()
            process.wait()
        text = (self.folder / "out/config.yaml").read_text()
        self.assertIn("  - name: second", text)
        # A run that cannot begin leaves the file as it was.
        error = self.run_command("finetune", "-c", "staged.yaml", "--overwrite", "--set", "data.train.path=none.jsonl", code=1)
        self.assertIn("none.jsonl", error)
        self.assertEqual((self.folder / "out/config.yaml").read_text(), text)
        self.run_command("finetune", "-c", "staged.yaml", "--set", "stages.first.train.max_steps=2")
        self.assertIn("max_steps: 2", (self.folder / "out/config.yaml").read_text())

    def test_a_killed_stage_goes_on(self):
        self.write("staged.yaml", RUN_FILE.format(base=BASE).replace("adapter: {r: 4, lora_alpha: 8, target_modules: [q_proj, v_proj]}", """
stages:
  - {name: rows, adapter: {method: trainable_tokens, trainable_token_indices: [12, 14]}}
  - {name: both, adapter: {r: 4, target_modules: [q_proj]}, train: {max_steps: 400}, checkpoint: {every_steps: 5}}
"""))
        words = [PROGRAM, "finetune", "-c", "staged.yaml", "--set", "run.output_dir=parts"]
        process = subprocess.Popen(words, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            for _ in range(600):
                if list(self.folder.glob("parts/both/checkpoints/step-*")) or process.poll() is not None:
                    break
                time.sleep(0.05)
        finally:
            process.kill()
            process.wait()
        result = lora("finetune", "-c", "staged.yaml", "--set", "run.output_dir=parts", cwd=self.folder)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("rows is finished", result.stderr)
        self.run_command("finetune", "-c", "staged.yaml", "--set", "run.output_dir=whole")
        files = [self.folder / name / "adapter/adapter_model.safetensors" for name in ("parts", "whole")]
        self.assertEqual(files[0].read_bytes(), files[1].read_bytes())
        self.assertIn("for another command", self.run_command("plan", "-c", "staged.yaml", code=2))

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

    def test_a_base_in_few_bits_trains_however_it_came_to_them(self):
        def outcome(name, base, *settings):
            self.write("few.yaml", RUN_FILE.format(base=base))
            self.run_command("finetune", "-c", "few.yaml", "--set", f"run.output_dir={name}", *(w for s in settings for w in ("--set", s)))
            return [line["loss"] for line in self.metrics(name)], (self.folder / name / "adapter/adapter_model.safetensors").read_bytes()

        four_bits = "adapter.quantization={bits: 4, double: true}"
        self.run_command("convert", "--input", BASE, "--output", "nf4", "--quantize", "nf4", "--double-quant")
        self.run_command("convert", "--input", "nf4", "--output", "plain")
        self.assertIn("quantization_config", (self.folder / "nf4/config.json").read_text())
        self.assertNotIn("quantization_config", (self.folder / "plain/config.json").read_text())
        expected = outcome("stored", self.folder / "nf4")
        self.assertEqual(outcome("while_loading", BASE, four_bits), expected)
        for a, b in zip(outcome("on_plain", self.folder / "plain")[0], expected[0], strict=True):
            self.assertAlmostEqual(a, b, delta=1e-5)
        self.assertEqual(outcome("stored_and_said", self.folder / "nf4", four_bits), expected)
        self.assertEqual(outcome("recomputed", BASE, four_bits, "train.recompute=full")[0], expected[0])
        self.assertNotEqual(outcome("on_base", BASE)[0], expected[0])
        outcome("in_two", BASE, four_bits, "train.max_steps=2")
        self.assertEqual(outcome("in_two", BASE, four_bits), expected)  # goes on
        self.assertNotEqual(outcome("in_8", BASE, "adapter.quantization.bits=8")[0], expected[0])
        self.assertIn("nf4 in blocks of 64", self.run_command("finetune", "-c", "few.yaml", "--set", "model.path=nf4", "--set",
                                                              "adapter.quantization.bits=4", code=2))
        self.assertIn("model.offload", self.run_command("finetune", "-c", "run.yaml", "--set", "model.path=nf4", "--set",
                                                        "model.offload=disk", code=2))

    def test_a_model_in_few_bits_scores_generates_and_merges_to_plain_numbers(self):
        bits = SOURCE / "tests/reference/peft/bnb4_dq"
        self.run_command("convert", "--input", bits, "--output", "plain")
        rows = {}
        for name, base in (("bits", bits), ("plain", "plain")):
            self.run_command("score", "--model", base, "--adapter", LORA / "final", "--input", "rows.jsonl", "--output", f"{name}.jsonl")
            rows[name] = (self.folder / f"{name}.jsonl").read_text()
        self.assertEqual(rows["bits"], rows["plain"])
        texts = [self.run_command("generate", "--model", base, "--prompt-ids", "1,5,9", "--temperature", "0", "--max-new-tokens", "8", "--json")
                 for base in (bits, "plain")]
        self.assertEqual(texts[0], texts[1])
        printed = self.run_command("merge", "--model", bits, "--adapter", LORA / "final", "--output", "merged")
        self.assertIn("the base is in nf4", printed)
        self.assertEqual(json.loads((self.folder / "merged/merge_report.json").read_text())["dequantized_from"], "nf4")
        self.run_command("merge", "--model", "plain", "--adapter", LORA / "final", "--output", "merged_plain")
        self.assertEqual((self.folder / "merged/model.safetensors").read_bytes(), (self.folder / "merged_plain/model.safetensors").read_bytes())
        self.assertNotIn("quantization_config", (self.folder / "merged/config.json").read_text())
        tensors = json.loads(self.run_command("inspect", bits, "--json"))
        self.assertEqual(tensors["parameters"], json.loads(self.run_command("inspect", "plain", "--json"))["parameters"])
        self.assertIn("nf4", tensors["dtypes"])

    def test_a_plan_counts_few_bits(self):
        plan = lambda *settings: json.loads(self.run_command("plan", "-c", "run.yaml", "--json", "--memory", "1GiB",
                                                             *(w for s in settings for w in ("--set", s))))
        plain, bits, stored = plan(), plan("adapter.quantization.bits=4"), plan(f"model.path={SOURCE / 'tests/reference/peft/bnb4'}")
        self.assertIsNone(plain["quantization"])
        self.assertEqual(bits["quantization"], "nf4")
        self.assertEqual(plan("adapter.quantization.bits=8")["quantization"], "int8")
        self.assertEqual(bits["weights_bytes"], stored["weights_bytes"])
        products = 2 * 4 * (4 * 64 * 64 + 3 * 64 * 192)
        self.assertEqual(plain["weights_bytes"] - bits["weights_bytes"], products - products // 8 - products // 64 - 14 * 16 * 4)
        advice = self.run_command("plan", "-c", "run.yaml", "--memory", "1MiB")
        self.assertIn("adapter.quantization: {bits: 4, double: true}", advice)

    def test_models_of_other_quantisers_are_refused(self):
        (self.folder / "gptq").mkdir()
        config = json.loads((BASE / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
        self.write("gptq/config.json", json.dumps(config))
        self.assertIn("gptq", self.run_command("score", "--model", "gptq", "--input", "rows.jsonl", "--output", "s.jsonl", code=1))

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

    EVALUATED = ("--set", "data.eval.path=dev.jsonl", "--set", "train.eval_interval=2", "--set", "train.optimizer.lr=2.0e-2", "--set",
                 "log.samples=0")
    BEST = (*EVALUATED, "--set", "checkpoint.keep_best=true")

    def overfitting(self):
        """Held-out rows that training helps with at first, and then hurts."""
        self.write_rows("dev.jsonl", [{"input_ids": [1, 12, 14, 20, 21, 33, 44]}, {"input_ids": [1, 122, 9, 99]}])
        self.with_method("{r: 4, target_modules: all-linear}")

    def adapter_bytes(self, folder):
        return (self.folder / folder / "adapter_model.safetensors").read_bytes()

    def held_out(self, directory="out"):
        return {line["step"]: line["eval_loss"] for line in self.metrics(directory) if "eval_loss" in line}

    def test_the_best_result_is_kept(self):
        self.overfitting()
        said = self.log_of(*self.BEST, "--set", "train.max_steps=12", "--set", "checkpoint.every_steps=2", "--set", "checkpoint.keep=9")
        losses = self.held_out()
        best = min(losses, key=losses.get)
        self.assertEqual(list(losses), [2, 4, 6, 8, 10, 12])
        self.assertTrue(2 < best < 12, losses)  # else this tests nothing
        self.assertIn(f"after step {best}; it is kept in", said)
        self.assertIn("(best)", said)
        minima = [step for step in losses if losses[step] < min([losses[s] for s in losses if s < step], default=math.inf)]
        self.assertEqual([line["step"] for line in self.metrics() if line.get("best")], minima)
        self.finetune(*self.BEST, "--set", f"train.max_steps={best}", "--set", "run.output_dir=to_best")
        self.assertEqual(self.adapter_bytes("out/best"), self.adapter_bytes("to_best/adapter"))
        self.assertNotEqual(self.adapter_bytes("out/best"), self.adapter_bytes("out/adapter"))
        self.assertIn("adapter", self.inspect("out/best"))
        self.assertIn("Best held-out loss", (self.folder / "out/report.html").read_text())

        # A run in parts, and one that goes on from before the best, have what an uninterrupted one has.
        for steps in (best, 12):
            self.finetune(*self.BEST, "--set", f"train.max_steps={steps}", "--set", "run.output_dir=parts")
        self.assertEqual(self.adapter_bytes("parts/best"), self.adapter_bytes("out/best"))
        self.assertEqual(self.held_out("parts"), losses)
        for step in range(4, 14, 2):
            shutil.rmtree(self.folder / f"out/checkpoints/step-{step}")
        self.finetune(*self.BEST, "--set", "train.max_steps=3")
        self.finetune(*self.BEST, "--set", "train.max_steps=2", "--set", "run.output_dir=two")
        self.assertEqual(self.adapter_bytes("out/best"), self.adapter_bytes("two/adapter"))

    def test_a_killed_run_leaves_its_best_result_to_the_next(self):
        self.overfitting()
        self.finetune(*self.BEST)
        for left in ("adapter", "checkpoints"):
            shutil.rmtree(self.folder / "out" / left)
        (self.folder / "out/report.html").unlink()
        (self.folder / "out/best.tmp-999999999-0").mkdir()
        self.finetune(*self.BEST)
        self.assertEqual([path.name for path in (self.folder / "out").iterdir() if "tmp" in path.name], [])
        self.finetune(*self.BEST, "--overwrite")
        self.finetune(*self.EVALUATED, "--overwrite")
        self.assertFalse((self.folder / "out/best").exists())

    def test_the_best_result_may_be_that_of_the_run(self):
        self.overfitting()
        self.write_rows("away.jsonl", [{"input_ids": [1, 12, 14, 99, 98, 97, 96], "labels": [-100] * 3 + [99, 98, 97, 96]}])  # what training unlearns
        load = (*self.BEST, "--set", "train.max_steps=12", "--set", "checkpoint.load_best_at_end=true")
        for name, more in {"lora": (), "network": ("adapter={method: ptuning, num_virtual_tokens: 2, r: null, target_modules: null}", "train.optimizer.lr=0.3",
                                       "data.eval.path=away.jsonl"),
                           "both": ("freeze.train=['layers.1.mlp']", "adapter.also.side.r=2", "data.eval.path=away.jsonl"),
                           "bits": ("adapter.quantization.bits=4",), "bf16": ("model.dtype=bf16",)}.items():
            with self.subTest(name):
                settings = [word for one in more for word in ("--set", one)]
                said = self.log_of(*load, *settings, "--set", f"run.output_dir={name}")
                losses = self.held_out(name)
                self.assertLess(min(losses.values()), losses[12], losses)
                self.assertIn("the result of this run", said)
                said_last = float(re.findall(r"held-out loss (\d+\.\d+)", said)[-1])
                self.assertAlmostEqual(said_last, min(losses.values()), delta=1e-3)
                self.assertEqual(self.adapter_bytes(f"{name}/adapter"), self.adapter_bytes(f"{name}/best"))
                self.assertFalse((self.folder / name / "adapter/model").exists())
        for file in ("adapter/side/adapter_model.safetensors", "model/model.safetensors"):
            best = self.folder / "both/best" / file.removeprefix("adapter/")
            self.assertEqual((self.folder / "both" / file).read_bytes(), best.read_bytes())

    def test_the_best_model_may_be_that_of_a_full_run(self):
        self.text_run()
        best = ("--set", "train.eval_interval=1", "--set", "train.max_steps=8", "--set", "train.optimizer.lr=0.1", "--set",
                "checkpoint={keep_best: true, load_best_model_at_end: true}", "--set", "log.samples=1", "--set", "generate.max_new_tokens=2")
        printed = self.run_command("train", "-c", "text.yaml", *best)
        losses = self.held_out()
        self.assertLess(min(losses.values()), losses[8], losses)
        self.assertAlmostEqual(float(re.search(r"-> (\d+\.\d+)", printed)[1]), min(losses.values()), delta=1e-3)
        for file in ("model.safetensors", "config.json", "tokenizer.model"):
            self.assertEqual((self.folder / "out/model" / file).read_bytes(), (self.folder / "out/best" / file).read_bytes())
        self.assertEqual(self.inspect("out/best")["kind"], self.inspect("out/model")["kind"])

    def test_a_run_ends_when_the_held_out_loss_no_longer_falls(self):
        self.overfitting()
        stop = (*self.EVALUATED, "--set", "train.max_steps=40", "--set", "train.early_stop.patience=2")
        said = self.log_of(*stop)
        losses = self.held_out()
        best = min(losses, key=losses.get)
        self.assertEqual(max(losses), best + 4)
        self.assertEqual(len(self.metrics()), best + 4)
        self.assertIn(f"ended after step {best + 4} of 40", said)
        self.assertTrue((self.folder / "out/report.html").exists())
        self.assertIn(f"is finished: it ended after step {best + 4}", self.log_of(*stop))
        # In parts the same; with more patience it goes on as if it had had that from the start.
        parts = ("--set", "run.output_dir=parts")
        self.finetune(*stop, *parts, "--set", f"train.max_steps={best + 3}")
        self.finetune(*stop, *parts)
        self.assertEqual(self.adapter_bytes("parts/adapter"), self.adapter_bytes("out/adapter"))
        patient = ("--set", "train.early_stop.patience=4")
        self.finetune(*stop, *patient)
        self.finetune(*stop, *patient, "--set", "run.output_dir=patient")
        self.assertEqual(self.held_out(), self.held_out("patient"))
        self.assertEqual(self.adapter_bytes("out/adapter"), self.adapter_bytes("patient/adapter"))
        self.finetune(*stop, "--set", "train.early_stop.min_delta=100", "--set", "run.output_dir=delta")
        self.assertEqual(len(self.metrics("delta")), 6)

    def test_keeping_the_best_needs_evaluations(self):
        for words, reason in ((("checkpoint.keep_best=true",), "checkpoint.keep_best needs held-out losses"),
                              (("train.early_stop.patience=1",), "train.early_stop.patience needs held-out losses"),
                              (("checkpoint.load_best_at_end=true",), "needs what checkpoint.keep_best keeps"),
                              (("checkpoint.keep_best=true", "train.eval_interval=2"), "data.eval.path"),
                              (("train.callbacks=[watch]",), "a callback that this program registered, which has none"),
                              (("train.early_stop=2",), "must be a map"), (("checkpoint.keep_bets=true",), "checkpoint.keep_best?")):
            self.assertIn(reason, self.finetune(*(word for one in words for word in ("--set", one)), code=2))
        self.assertFalse((self.folder / "out").exists())

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

    def test_merged_model_scores_like_the_adapter(self):
        self.finetune()
        self.run_command("merge", "--model", BASE, "--adapter", "out/adapter", "--output", "merged")
        report = json.loads((self.folder / "merged/merge_report.json").read_text())
        self.assertLess(report["max_logit_change"], 1e-5)
        adapted = self.score("out/adapter")
        base = self.score(None)
        self.run_command("score", "--model", "merged", "--input", "rows.jsonl", "--output", "merged.jsonl")
        merged = [json.loads(line) for line in (self.folder / "merged.jsonl").read_text().splitlines()]
        for a, m, b in zip(adapted, merged, base, strict=True):
            self.assertAlmostEqual(a["sum_logprob"], m["sum_logprob"], delta=1e-4)
            self.assertNotAlmostEqual(a["sum_logprob"], b["sum_logprob"], delta=1e-2)
            self.assertAlmostEqual(sum(a["logprobs"]), a["sum_logprob"], delta=1e-4)
            self.assertAlmostEqual(a["loss"], -a["sum_logprob"] / a["num_targets"], delta=1e-5)

    def export(self, *arguments, base=BASE, code=0):
        return self.run_command("export", "--model", base, *arguments, code=code)

    def inspect(self, path):
        return json.loads(self.run_command("inspect", path, "--json"))

    def test_export_writes_the_gguf_file_of_the_reference(self):
        for case, base in (("lora", "base"), ("lora_gqa", "base_gqa"), ("rslora", "base"), ("lora_all_linear_patterns", "base")):
            self.export("--adapter", REFERENCE / case / "final", "--to", "gguf", "--output", "a.gguf", "--overwrite",
                        base=REFERENCE / base)
            self.assertEqual((self.folder / "a.gguf").read_bytes(), (REFERENCE / "gguf_lora" / f"{case}.gguf").read_bytes())
        inspected = self.inspect("a.gguf")
        self.assertEqual((inspected["kind"], inspected["metadata"]["adapter.type"]), ("gguf", "lora"))
        self.assertEqual(len(inspected["tensors"]), 28)
        self.export("--adapter", LORA / "final", "--to", "gguf", "--output", "half.gguf", "--dtype", "f16")
        self.assertEqual(list(self.inspect("half.gguf")["dtypes"]), ["F16"])

    def test_export_leaves_nothing_of_what_it_cannot_write(self):
        before = sorted(self.folder.iterdir())
        for case in ("lora_modules_to_save",):
            self.assertIn("lora merge", self.export("--adapter", REFERENCE / case / "final", "--to", "gguf", "--output", "x", code=1))
        for kind in ("gguf", "peft"):
            error = self.export("--adapter", LORA / "final", "--to", kind, "--output", "x", base=REFERENCE / "base_gqa", code=1)
            self.assertIn("v_proj", error)
        self.export("--adapter", LORA / "final", "--to", "onnx", "--output", "x", code=2)
        self.export("--adapter", LORA / "final", "--to", "peft", "--output", "x", "--dtype", "f16", code=2)
        self.export("--adapter", LORA / "final", "--to", "gguf", "--output", "x", "--dtype", "int8", code=2)
        self.export("--adapter", LORA / "final", "--adapter", LORA / "init", "--to", "peft", "--output", "x", code=2)
        self.export("--adapter", "none", "--to", "gguf", "--output", "x", code=1)
        self.assertEqual(sorted(self.folder.iterdir()), before)
        self.write("a.gguf", "kept")
        self.export("--adapter", LORA / "final", "--to", "gguf", "--output", "a.gguf", code=2)
        self.assertEqual((self.folder / "a.gguf").read_text(), "kept")

    def test_export_cleans_an_adapter_for_peft(self):
        dirty = self.folder / "dirty"
        shutil.copytree(LORA / "final", dirty)
        config = json.loads((dirty / "adapter_config.json").read_text())
        config["some_other_tool"] = {"a": 1}
        (dirty / "adapter_config.json").write_text(json.dumps(config))
        (dirty / "notes.txt").write_text("mine")
        file = dirty / "adapter_model.safetensors"
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = {name.removeprefix("base_model.model."): entry for name, entry in json.loads(data[8:8 + length]).items()}
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length:])
        self.export("--adapter", "dirty", "--to", "peft", "--output", "clean")
        self.assertEqual(sorted(path.name for path in (self.folder / "clean").iterdir()),
                         ["adapter_config.json", "adapter_model.safetensors"])
        self.assertNotIn("some_other_tool", json.loads((self.folder / "clean/adapter_config.json").read_text()))
        names = [tensor["name"] for tensor in self.inspect("clean")["tensors"]]
        self.assertEqual(names, [tensor["name"] for tensor in self.inspect(LORA / "final")["tensors"]])
        for a, b in zip(self.score(LORA / "final"), self.score("clean"), strict=True):
            self.assertEqual(a["logprobs"], b["logprobs"])
        for case in ("lora_modules_to_save", "lora_embedding"):
            self.export("--adapter", REFERENCE / case / "final", "--to", "peft", "--output", case)
            for a, b in zip(self.score(REFERENCE / case / "final"), self.score(case), strict=True):
                self.assertEqual(a["logprobs"], b["logprobs"])

    def test_export_combines_adapters(self):
        several = ["--adapter", REFERENCE / "multi_adapter/a", "--adapter", REFERENCE / "multi_adapter/b", "--weights", "0.7,-0.4"]
        for kind in ("cat", "linear"):
            self.export(*several, "--combination-type", kind, "--to", "peft", "--output", kind)
            for a, b in zip(self.score(kind), self.score(REFERENCE / "multi_adapter" / f"w_{kind}"), strict=True):
                for mine, theirs in zip(a["logprobs"], b["logprobs"], strict=True):
                    self.assertAlmostEqual(mine, theirs, delta=1e-5)
        self.export(*several, "--to", "gguf", "--output", "cat.gguf")
        self.assertEqual(self.inspect("cat.gguf")["tensors"][0]["shape"], [6, 64])
        self.assertIn("density", self.export(*several, "--combination-type", "ties", "--to", "peft", "--output", "x", code=2))
        self.export(*several, "--combination-type", "ties", "--density", "0.5", "--to", "peft", "--output", "ties")
        self.assertEqual(self.inspect("ties")["adapter"]["r"], 3)

    def test_merge_reports_what_the_adapter_does_and_what_merging_loses(self):
        merge = ["merge", "--model", BASE, "--adapter", LORA / "final", "--input", "rows.jsonl", "--overwrite", "--output", "merged"]
        report = json.loads(self.run_command(*merge, "--json"))
        self.assertEqual(report["rows"], {"source": "rows.jsonl", "given": 2, "used": 2, "tokens": 11})
        self.assertLess(report["max_logit_change"], 1e-5)
        self.assertEqual(report["top_token_kept"], 1)
        self.assertGreater(report["adapter_effect"]["max_logit_change"], 0.1)
        self.assertLess(report["adapter_effect"]["mean_logit_change"], report["adapter_effect"]["max_logit_change"])
        self.assertEqual(json.loads((self.folder / "merged/merge_report.json").read_text()), report)
        norms = self.inspect(LORA / "final")["adapter"]["update_norms"]
        self.assertEqual(sorted(norms), sorted(report["update_norms"]))
        for module, norm in norms.items():
            self.assertAlmostEqual(report["update_norms"][module], norm, delta=1e-4 * norm)
            self.assertEqual(report["rounding_norms"][module], 0)
        half = json.loads(self.run_command(*merge, "--dtype", "bf16", "--json"))
        for module, norm in norms.items():
            # Each number is off by 2^-9 of itself at most.
            self.assertLess(half["rounding_norms"][module], 2 ** -8 * half["weight_norms"][module])
            self.assertGreater(half["rounding_norms"][module], 2 ** -11 * half["weight_norms"][module])
        self.assertIn("what is lost", self.run_command(*merge))
        whole = ["merge", "--model", BASE, "--adapter", REFERENCE / "lora_modules_to_save/final", "--output", "whole", "--json"]
        self.assertGreater(json.loads(self.run_command(*whole))["update_norms"]["lm_head.weight"], 0)

    def test_a_merge_that_is_not_finite_names_the_module(self):
        adapter = self.folder / "wild"
        shutil.copytree(LORA / "final", adapter)
        file = adapter / "adapter_model.safetensors"
        data = bytearray(file.read_bytes())
        length = int.from_bytes(data[:8], "little")
        tensor = json.loads(data[8:8 + length])["base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"]
        begin, end = (8 + length + offset for offset in tensor["data_offsets"])
        data[begin:end] = struct.pack("<f", 1e6) * ((end - begin) // 4)
        file.write_bytes(data)
        merge = ["merge", "--model", BASE, "--adapter", "wild", "--output", "merged"]
        self.assertIn("model.layers.1.self_attn.v_proj", self.run_command(*merge, "--dtype", "fp16", code=1))
        self.assertFalse((self.folder / "merged").exists())
        self.run_command(*merge, "--input", "none.jsonl", code=1)
        self.write("empty.jsonl", "")
        self.run_command(*merge, "--input", "empty.jsonl", code=1)

    def test_generate_is_greedy_and_scored(self):
        text = self.run_command("generate", "--model", BASE, "--prompt-ids", "1,12,14", "--max-new-tokens", 5, "--json")
        result = json.loads(text)
        self.assertEqual(set(result), {"text", "token_ids", "logprobs", "score", "finish_reason"})
        self.assertIsNone(result["text"])
        self.write_rows("rows.jsonl", [{"input_ids": [1, 12, 14] + result["token_ids"]}])
        self.assertAlmostEqual(sum(self.score(None)[0]["logprobs"][2:]), result["score"], delta=1e-4)

    def test_guessed_tokens_change_nothing(self):
        command = ["generate", "--model", BASE, "--prompt-ids", "1,12,14,1,12,14", "--max-new-tokens", 20, "--json", "--prompt-lookup-num-tokens"]
        self.assertEqual(self.run_command(*command, 3), self.run_command(*command, 0))
        self.assertIn("prompt_lookup_num_tokens", self.run_command(*command, -1, code=2))

    def test_generate_penalizes_and_searches(self):
        command = ["generate", "--model", BASE, "--prompt-ids", "1,17,42,9", "--max-new-tokens", 12, "--json"]
        plain, penalized = (json.loads(self.run_command(*command, *more)) for more in ([], ["--repetition-penalty", 5]))
        self.assertLess(len(set(plain["token_ids"])), 12)
        self.assertEqual(len(set(penalized["token_ids"]) | {1, 17, 42, 9}), 16)
        self.assertNotIn("beam_score", plain)
        beams = json.loads(self.run_command(*command, "--num-beams", 4, "--length-penalty", 2))
        self.assertAlmostEqual(beams["beam_score"], beams["score"] / len(beams["token_ids"]) ** 2, delta=1e-4)
        self.assertGreaterEqual(beams["score"], plain["score"] - 1e-4)
        self.assertIn("temperature", self.run_command(*command, "--num-beams", 2, "--temperature", 1, code=2))
        self.assertIn("repetition_penalty", self.run_command(*command, "--repetition-penalty", 0, code=2))
        self.assertIn("num_beams", self.run_command(*command, "--num-beams", 1_000_000_000, code=2))
        self.assertIn("num_beams", self.run_command(*command, "--num-beams", 0, code=2))

    def test_bench_measures_a_run_file_and_leaves_nothing(self):
        before = sorted(self.folder.rglob("*"))
        result = json.loads(self.run_command("bench", "-c", "run.yaml", "--steps", 2, "--new-tokens", 3, "--threads", 1, "--json"))
        self.assertEqual(sorted(self.folder.rglob("*")), before)
        self.assertEqual((result["tokens"], result["targets"], result["threads"]), (11, 9, 1))
        self.assertEqual(result["generation"]["new_tokens"], 3)
        self.assertEqual(len(result["training"]["wall_seconds"]), 2)
        for value in (result["training"]["tokens_per_second"], result["training"]["sol_percent"], result["peak_memory_bytes"],
                      result["training"]["first_step_seconds"], result["generation"]["tokens_per_second"]):
            self.assertGreater(value, 0)
        self.assertIn("trainable_parameters", result)

    def test_bench_without_a_run_file_draws_model_and_rows(self):
        small = ["model.hidden_size=32", "model.intermediate_size=64", "model.num_hidden_layers=1", "model.num_attention_heads=2",
                 "model.vocab_size=50", "data.max_length=10", "train.micro_batch=3"]
        arguments = [word for setting in small for word in ("--set", setting)]
        out = self.run_command("bench", "--steps", 1, "--new-tokens", 0, "--output", "bench.json", *arguments)
        self.assertIn("training", out)
        result = json.loads((self.folder / "bench.json").read_text())
        self.assertEqual((result["tokens"], result["dtype"]), (30, "bf16"))
        self.assertIn("without drawing the weights", out)

    def test_bench_uses_the_tokens_that_are_kept(self):
        def bench(*arguments):
            result = lora("bench", "-c", "run.yaml", "--steps", 1, "--new-tokens", 0, *arguments, cwd=self.folder)
            self.assertEqual(result.returncode, 0, result.stderr)
            return result.stderr

        self.assertNotIn("from the cache", bench())
        self.assertFalse((self.folder / "out").exists())
        self.finetune()
        (cache,) = (self.folder / "out/cache").iterdir()
        self.assertIn(f"2 from the cache {cache}", bench())
        named = ["--set", "data.cache_dir=tokens"]
        self.assertNotIn("from the cache", bench(*named))
        (cache,) = (self.folder / "tokens").iterdir()
        self.assertIn(f"2 from the cache {cache}", bench(*named))

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

    def test_bench_reports_nothing_when_the_peer_differs_or_ends(self):
        self.write("peer.py", """
import json, struct, sys
for line in sys.stdin:
    words = line.split()
    if words[0] == "grads":
        head = json.dumps({"other": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
        open(words[1], "wb").write(struct.pack("<Q", len(head)) + head + bytes(4))
    print(json.dumps({"wall": [0.1], "cpu": [0.1], "loss": 1.0, "first_step_seconds": 0.5}), flush=True)
""")
        self.write("gone.py", "raise SystemExit(3)")
        peer = ["bench", "-c", "run.yaml", "--steps", 1, "--peer", sys.executable, "--json"]
        self.assertIn("same parameters", self.run_command(*peer, "--peer-script", "peer.py", code=1))
        self.assertIn("it ended", self.run_command(*peer, "--peer-script", "gone.py", code=1))
        self.assertIn("must start", self.run_command("bench", "-c", "run.yaml", "--peer", "no-such-python", code=1))

    def test_bench_reports_nothing_when_gradients_or_losses_differ(self):
        # A peer whose gradients are ours, or the adapter's own values under the same names, and whose loss is what we say.
        self.write("peer.py", """
import json, pathlib, shutil, sys
adapter = pathlib.Path(sys.argv[sys.argv.index("--adapter") + 1]) / "adapter_model.safetensors"
says = json.loads(pathlib.Path("says.json").read_text())
for line in sys.stdin:
    words = line.split()
    if words[0] == "grads":
        target = pathlib.Path(words[1])
        shutil.copy(target.parent / "ours.safetensors" if says["same"] else adapter, target)
    print(json.dumps({"wall": [0.1], "cpu": [0.1], "loss": says["loss"], "first_step_seconds": 0.5}), flush=True)
""")

        def bench(same, loss, code):
            self.write("says.json", json.dumps({"same": same, "loss": loss}))
            return self.run_command("bench", "-c", "run.yaml", "--steps", 1, "--new-tokens", 0, "--peer", sys.executable,
                                    "--peer-script", "peer.py", "--json", code=code)

        refused = bench(True, 1000.0, 1)
        ours = float(re.search(r"losses ([0-9.]+) and 1000", refused)[1])
        self.assertIn("found 1.0000", refused)
        self.assertAlmostEqual(json.loads(bench(True, ours + 5e-4, 0))["peer"]["worst_gradient_cosine"], 1, delta=1e-6)
        self.assertIn("losses within 1e-3", bench(True, ours + 2e-3, 1))
        self.assertIn("at a cosine of 0.999", bench(False, ours, 1))

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

    def test_bad_rows_can_be_left_out(self):
        self.write("rows.jsonl", '{"input_ids": [1, 2, 3]}\nnot json\n{"input_ids": [1, 2, 300]}\n{"input_ids": [1, 4, 5]}\n')
        result = lora("finetune", "-c", "run.yaml", "--set", "data.on_bad_row=skip", cwd=self.folder)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("4 rows, 0 truncated, 2 bad", result.stderr)

    def test_tokens_are_kept_for_the_next_run(self):
        self.write("rows.jsonl", '{"input_ids": [1, 2, 3]}\nnot json\n{"input_ids": [1, 4, 5]}\n')

        def run(*arguments):
            result = lora("finetune", "-c", "run.yaml", "--set", "data.on_bad_row=skip", *arguments, cwd=self.folder)
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertIn("3 rows, 0 truncated, 1 bad", result.stderr)
            self.assertIn("left out: [%s:2]" % (self.folder / "rows.jsonl"), result.stderr)
            return result.stderr

        self.assertNotIn("from the cache", run())
        (cache,) = (self.folder / "out/cache").iterdir()
        tokenised = self.metrics()
        again = run("--overwrite")
        self.assertIn(f"3 from the cache {cache}", again)
        self.assertIn("from the cache", run("--set", "train.max_steps=6", "--set", "data.loader.workers=auto"))
        self.assertEqual([line["loss"] for line in self.metrics()][:4], [line["loss"] for line in tokenised])

        whole = cache.read_bytes()
        cache.write_bytes(whole[:-1])
        damaged = run("--overwrite")
        self.assertEqual([line for line in damaged.splitlines() if line.startswith("warning: ") and str(cache) in line], [
            line for line in damaged.splitlines() if "tokenised anew" in line])
        self.assertNotIn("from the cache", damaged)
        self.assertEqual(cache.read_bytes(), whole)

        self.write("in the way", "")
        unwritable = run("--set", "run.output_dir=other", "--set", "data.cache_dir=in the way/cache",
                         "--set", "data.eval.path=rows.jsonl")
        self.assertEqual(unwritable.count("[data.cache_dir]"), 1)
        self.assertFalse((self.folder / "other/cache").exists())
        shared = ["--set", "data.cache_dir=tokens", "--set", "run.output_dir=third"]
        run(*shared)
        self.assertFalse((self.folder / "third/cache").exists())
        self.assertEqual(len(list((self.folder / "tokens").iterdir())), 1)

    def test_an_adapter_of_another_model_is_refused(self):
        adapter = SOURCE / "tests/reference/peft/lora_gqa/final"
        error = self.run_command("score", "--model", BASE, "--adapter", adapter, "--input", "rows.jsonl", "--output", "s.jsonl",
                                 code=1)
        self.assertIn("k_proj", error)
        self.assertFalse((self.folder / "s.jsonl").exists())

    def plan(self, *arguments):
        return json.loads(self.run_command("plan", "-c", "run.yaml", "--json", *arguments))

    def test_plan_predicts_a_run_without_starting_it(self):
        plan = self.plan("--memory", "1GiB")
        model = json.loads(self.run_command("inspect", BASE, "--json"))
        self.assertEqual(plan["weights_bytes"], 4 * model["parameters"])
        self.assertEqual(plan["gradients_bytes"], plan["adapters_bytes"])
        self.assertEqual(plan["memory_bytes"], 2**30)
        self.assertEqual((plan["micro_batch"], plan["tokens_per_row"], plan["tokens_per_micro_batch"]), (2, 8, 16))
        self.assertIs(plan["fits"], True)
        self.assertGreaterEqual(plan["largest_micro_batch"], 2)
        for key in ("packed", "optimizer", "activations", "logits", "program", "peak"):
            self.assertIn(f"{key}_bytes", plan)
        self.assertFalse((self.folder / "out").exists())
        largest = plan["largest_micro_batch"]
        self.assertTrue(self.plan("--memory", "1GiB", "--set", f"train.micro_batch={largest}")["fits"])
        self.assertFalse(self.plan("--memory", "1GiB", "--set", f"train.micro_batch={largest + 1}")["fits"])

        self.finetune()
        peak = max(line["peak_memory_bytes"] for line in self.metrics() if "peak_memory_bytes" in line)
        self.assertLess(abs(plan["peak_bytes"] / peak - 1), 0.15)

    def test_plan_of_fresh_weights_names_no_file(self):
        self.write("run.yaml", """
run: {output_dir: out, mode: train}
model: {arch: llama, preset: llama2-7b, dtype: bf16}
data: {format: text, max_length: 512, train: {path: missing.txt}}
""")
        plan = self.plan("--device", "cuda", "--memory", "80GB")
        self.assertEqual((plan["mode"], plan["device"], plan["parameters"]), ("train", "cuda", 6_738_415_616))
        self.assertEqual(plan["weights_bytes"], 2 * plan["parameters"])
        self.assertEqual(plan["optimizer_bytes"] // plan["parameters"], 12)  # moments, and the weights in fp32
        self.assertIs(plan["fits"], False)
        self.assertEqual(plan["largest_micro_batch"], 0)
        text = self.run_command("plan", "-c", "run.yaml", "--device", "cuda", "--memory", "80GB")
        for word in ("optimizer", "peak", "does not fit", "train.recompute", "GiB"):
            self.assertIn(word, text)

    def test_plans_that_cannot_be_made(self):
        for arguments, code, named in ((["-c", "none.yaml"], 2, "none.yaml"),
                                       (["-c", "run.yaml", "--set", "model.path=none"], 1, "none"),
                                       (["-c", "run.yaml", "--set", "train.micro_bath=2"], 2, "micro_batch"),
                                       (["-c", "run.yaml", "--set", "adapter.target_modules=[q_prj]"], 2, "q_proj"),
                                       (["-c", "run.yaml", "--set", "train.micro_batch=1000000000000"], 2, "fewer rows"),
                                       (["-c", "run.yaml", "--memory", "much"], 2, "GiB"),
                                       (["-c", "run.yaml", "--device", "cuda"], 2, "--memory")):
            with self.subTest(arguments):
                self.assertIn(named, self.run_command("plan", *arguments, code=code))

    def test_help_has_an_example_everywhere(self):
        for command in ("train", "finetune", "generate", "score", "merge", "export", "convert", "inspect", "plan", "completion"):
            self.assertIn("Example:", self.run_command(command, "--help"))


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
