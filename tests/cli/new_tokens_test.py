#!/usr/bin/env python3
"""New tokens: tokenizer, embedding and head grow; stages train one after another.

usage: new_tokens_test.py PROGRAM SOURCE_DIR [NewTokensTest.TEST...]
"""
import json
import shutil
import struct
import subprocess
import time

from command_line import BASE, CliTest, lora, main, PROGRAM, read_safetensors, RUN_FILE, SOURCE, write_safetensors


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


class NewTokensTest(CliTest):
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


if __name__ == "__main__":
    main()
