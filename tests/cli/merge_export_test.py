#!/usr/bin/env python3
"""Merging adapters into models, exporting them, and showing what they are.

usage: merge_export_test.py PROGRAM SOURCE_DIR [MergeExportTest.TEST...]
"""
import json
import shutil
import struct

from command_line import BASE, CliTest, lora, LORA, main, read_safetensors, REFERENCE, RUN_FILE, write_safetensors


class MergeExportTest(CliTest):
    def test_inspect_tells_how_far_an_adapter_moves_the_weights(self):
        for name, module in (("lora", "model.layers.0.self_attn.q_proj"), ("lora_embedding", "model.embed_tokens")):
            inspected = json.loads(self.run_command("inspect", LORA.parent / name / "final", "--json"))
            self.assertGreater(inspected["adapter"]["update_norms"][module], 0)

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

    def test_methods_that_no_weight_can_hold_are_not_merged(self):
        for name in ("prefix", "bottleneck"):
            self.with_method(self.METHODS[name])
            self.finetune("--set", f"run.output_dir={name}", "--set", "train.max_steps=1")
            error = self.run_command("merge", "--model", BASE, "--adapter", f"{name}/adapter", "--output", "merged", code=1)
            self.assertIn(name, error)
            self.assertFalse((self.folder / "merged").exists())

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

    def tied_base(self):
        """The directory of a small Llama whose head is its embeddings' table."""
        self.write("tied.yaml", """
run: {output_dir: tied, device: cpu}
model: {arch: llama, vocab_size: 128, hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2,
        max_position_embeddings: 64, tie_word_embeddings: true}
adapter: {method: none}
data: {format: tokens, train: {path: rows.jsonl}}
train: {max_steps: 1, micro_batch: 2}
""")
        self.run_command("train", "-c", "tied.yaml")
        return self.folder / "tied/model"

    def scores_of(self, *words):
        self.run_command("score", *words, "--input", "rows.jsonl", "--output", "s.jsonl", "--overwrite", "-q")
        return [json.loads(line)["sum_logprob"] for line in (self.folder / "s.jsonl").read_text().splitlines()]

    def test_a_tied_head_that_trains_gets_numbers_of_its_own(self):
        base = self.tied_base()
        for name, keys in (("saved", "modules_to_save: [lm_head]"), ("target", "target_modules: [q_proj, embed_tokens, lm_head]")):
            with self.subTest(name):
                self.write("run.yaml", RUN_FILE.format(base=base).replace("target_modules: [q_proj, v_proj]", keys))
                self.assertIn("model.tie_word_embeddings: false", self.finetune(code=2))
                self.finetune("--set", "model.tie_word_embeddings=false", "--set", f"run.output_dir={name}")
                adapted = self.scores_of("--model", base, "--adapter", f"{name}/adapter")
                self.run_command("merge", "--model", base, "--adapter", f"{name}/adapter", "--output", f"{name}_merged")
                self.assertFalse(json.loads((self.folder / f"{name}_merged/config.json").read_text())["tie_word_embeddings"])
                for a, b in zip(adapted, self.scores_of("--model", f"{name}_merged"), strict=True):
                    self.assertAlmostEqual(a, b, delta=1e-4)

    def test_a_head_that_is_stored_besides_a_tied_table_is_not_lost(self):
        base = self.tied_base()
        tensors = read_safetensors(base / "model.safetensors")[1]
        kind, shape, data = tensors["model.embed_tokens.weight"]
        scores = self.scores_of("--model", base)
        write_safetensors(base / "model.safetensors", {**tensors, "lm_head.weight": (kind, shape, data)})
        self.assertEqual(self.scores_of("--model", base), scores)
        write_safetensors(base / "model.safetensors", {**tensors, "lm_head.weight": (kind, shape, bytes(len(data)))})
        untied = self.scores_of("--model", base)
        self.assertNotEqual(untied, scores)
        self.run_command("convert", "--input", base, "--output", "copy")
        self.assertEqual(self.scores_of("--model", "copy"), untied)
        self.assertFalse(json.loads((self.folder / "copy/config.json").read_text())["tie_word_embeddings"])

    def test_what_a_model_directory_says_besides_its_weights_is_kept(self):
        shutil.copytree(BASE, self.folder / "base")
        config = json.loads((self.folder / "base/config.json").read_text())
        self.write("base/config.json", json.dumps({**config, "attention_dropout": 0.125, "_name_or_path": "x"}))
        self.write("base/generation_config.json", '{"temperature": 0.25}')
        self.write("base/chat_template.jinja", "{{ messages }}")
        self.write("base/modeling_own.py", "x = 1\n")
        self.run_command("merge", "--model", "base", "--adapter", LORA / "final", "--output", "merged")
        self.run_command("convert", "--input", "base", "--output", "copy", "--dtype", "bf16")
        for made in ("merged", "copy"):
            written = json.loads((self.folder / made / "config.json").read_text())
            self.assertEqual((written["attention_dropout"], "_name_or_path" in written), (0.125, False))
            self.assertEqual(json.loads((self.folder / made / "generation_config.json").read_text()), {"temperature": 0.25})
            self.assertEqual((self.folder / made / "chat_template.jinja").read_text(), "{{ messages }}")
            self.assertTrue((self.folder / made / "modeling_own.py").exists())
            self.assertTrue(self.inspect(made)["digest"])

    def test_options_of_convert_need_what_they_belong_to(self):
        for words in (("--double-quant",), ("--block-size", 64), ("--new-rows", "random"), ("--pad-vocab-to-multiple-of", 64)):
            result = lora("convert", "--input", BASE, "--output", "copy", *words, cwd=self.folder)
            self.assertEqual(result.returncode, 2, result.stderr)

    def test_damaged_names_of_tensors_are_refused_for_gguf_too(self):
        shutil.copytree(LORA / "final", self.folder / "odd")
        file = self.folder / "odd/adapter_model.safetensors"
        tensors = read_safetensors(file)[1]
        write_safetensors(file, {name + ("JUNK" if ".0.self_attn.q_proj.lora_A" in name else ""): value for name, value in tensors.items()})
        self.assertIn("JUNK", self.export("--adapter", "odd", "--to", "gguf", "--output", "a.gguf", code=1))
        self.assertFalse((self.folder / "a.gguf").exists())

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


if __name__ == "__main__":
    main()
