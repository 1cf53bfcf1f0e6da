#!/usr/bin/env python3
"""Merging adapters into models, exporting them, and showing what they are.

usage: merge_export_test.py PROGRAM SOURCE_DIR [MergeExportTest.TEST...]
"""
import json
import shutil
import struct

from command_line import BASE, CliTest, LORA, main, REFERENCE


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
            error = self.run_command("merge", "--model", BASE, "--adapter", f"{name}/adapter", "--output", "merged", code=2)
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
