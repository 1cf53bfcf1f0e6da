#!/usr/bin/env python3
"""The program of examples/own_model.cpp: its model, its rows and its run file work with every command.

usage: own_model_test.py PROGRAM SOURCE_DIR
"""
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

PROGRAM, SOURCE = sys.argv[1], pathlib.Path(sys.argv[2])
RUN_FILE = SOURCE / "examples/own_model.yaml"


class OwnModelTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.write_rows([{"q": f"color of {thing}", "a": color} for thing, color in
                         (("snow", "white"), ("coal", "black"), ("blood", "red"), ("grass", "green"))] * 3)

    def write_rows(self, rows, name="rows.jsonl"):
        (self.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run_command(self, *arguments, code=0):
        result = subprocess.run([PROGRAM, *map(str, arguments)], cwd=self.folder, capture_output=True, text=True, timeout=120)
        self.assertEqual(result.returncode, code, result.stderr)
        self.log = result.stderr
        return result.stderr if code else result.stdout

    def with_run_file(self, command, *settings, code=0):
        common = ("data.train.path=rows.jsonl", "data.eval.path=rows.jsonl", "run.output_dir=out", "train.max_steps=2", "log.samples=1")
        return self.run_command(command, "-c", RUN_FILE, *(word for setting in (*common, *settings) for word in ("--set", setting)), code=code)

    def metrics(self, directory="out"):
        return [json.loads(line) for line in (self.folder / directory / "metrics.jsonl").read_text().splitlines()]

    def test_it_is_tuned_evaluated_and_generates(self):
        self.with_run_file("train", "adapter={method: none, r: null, target_modules: null}", "run.output_dir=base")
        base = ("model={arch: null, path: base/model}", "tokenizer.path=null")
        self.with_run_file("finetune", *base)
        self.assertEqual(len(self.metrics()), 2)
        self.assertTrue((self.folder / "out/adapter/adapter_model.safetensors").exists())
        result = json.loads((self.folder / "out/eval.json").read_text() if self.with_run_file("eval", *base) else "{}")
        self.assertEqual(result["rows"], 12)
        self.assertEqual([name for name in result if name in ("exact-match", "letter")], ["exact-match", "letter"])
        predictions = [json.loads(line) for line in (self.folder / "out/predictions.jsonl").read_text().splitlines()]
        self.assertEqual((predictions[0]["prompt"], predictions[0]["reference"]), ("color of snow\n", "white"))
        self.run_command("generate", "--model", "base/model", "--adapter", "out/adapter", "--prompt", "color of snow\n", "--max-new-tokens", 4)
        self.run_command("merge", "--model", "base/model", "--adapter", "out/adapter", "--output", "merged")
        self.assertEqual(json.loads((self.folder / "merged/config.json").read_text()), {"model_type": "pairs"})

    def test_a_model_that_does_not_convert_is_named(self):
        self.with_run_file("train", "adapter={method: none, r: null, target_modules: null}", "run.output_dir=base")
        for option in ([], ["--dry-run"], ["--quantize", "nf4"]):
            self.assertIn("found \"pairs\"", self.run_command("convert", "--input", "base/model", "--output", "converted", *option, code=2))
        self.assertFalse((self.folder / "converted").exists())

    def test_its_rows_are_the_completions_that_they_stand_for(self):
        self.with_run_file("finetune")
        rows = [json.loads(line) for line in (self.folder / "rows.jsonl").read_text().splitlines()]
        self.write_rows([{"prompt": row["q"] + "\n", "completion": row["a"]} for row in rows], "same.jsonl")
        self.with_run_file("finetune", "data.format=completion", "data.train.path=same.jsonl", "data.eval.path=same.jsonl",
                           "run.output_dir=same")
        self.assertEqual([line["loss"] for line in self.metrics()], [line["loss"] for line in self.metrics("same")])

    def test_tokens_of_its_rows_are_kept_prepared_and_packed(self):
        self.with_run_file("finetune", "data.eval.path=null")
        self.assertNotIn("from the cache", self.log)
        expected = [line["loss"] for line in self.metrics()]
        self.with_run_file("finetune", "data.eval.path=null", "run.output_dir=again", f"data.cache_dir={self.folder / 'out/cache'}")
        self.assertIn("from the cache", self.log)
        self.with_run_file("prepare", "run.output_dir=prepared")
        records = ("data.format=records", "data.train.path=prepared/records/train", "data.eval.path=prepared/records/eval")
        self.with_run_file("finetune", *records, "run.output_dir=from_records")
        self.assertEqual([line["loss"] for line in self.metrics("from_records")], expected)
        self.with_run_file("finetune", "run.output_dir=packed", "data.packing=true", "data.max_length=512")
        self.assertGreater(self.metrics("packed")[0]["targets"], self.metrics()[0]["targets"])

    def test_bad_rows_are_named_or_left_out(self):
        rows = [{"q": "color of snow", "a": "white"}, {"q": "no answer"}, {"q": "blank", "a": " "}, {"q": 3, "a": "x"}]
        self.write_rows(rows)
        error = self.with_run_file("finetune", "data.eval.path=null", code=1)
        self.assertIn('rows.jsonl:2] "a" must be there', error)
        self.with_run_file("finetune", "data.eval.path=null", "data.on_bad_row=skip", "data.loader.drop_last=false")
        self.assertIn("4 rows, 0 truncated, 3 bad", self.log)

    def test_unknown_names_are_usage_errors(self):
        error = self.with_run_file("finetune", "data.format=qq", code=2)
        self.assertIn("did you mean qa?", error)
        self.assertIn("did you mean letter?", self.with_run_file("eval", "eval.metrics=[leter]", code=2))
        self.assertIn("did you mean pairs?", self.with_run_file("finetune", "model.arch=pair", code=2))


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
