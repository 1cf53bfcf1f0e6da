#!/usr/bin/env python3
"""Evaluation and generation: losses, answers and their metrics, the best result, early ends.

usage: evaluation_test.py PROGRAM SOURCE_DIR [EvaluationTest.TEST...]
"""
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import time

from command_line import BASE, CliTest, lora, main, PROGRAM, SOURCE


class EvaluationTest(CliTest):
    EVALUATED = ("--set", "data.eval.path=dev.jsonl", "--set", "train.eval_interval=2", "--set", "train.optimizer.lr=2.0e-2", "--set",
                 "log.samples=0")
    BEST = (*EVALUATED, "--set", "checkpoint.keep_best=true")

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

    def predictions(self, folder, *words):
        self.run_command("predict", "-c", "run.yaml", "--set", f"run.output_dir={folder}", *words)
        return [json.loads(line) for line in (self.folder / folder / "predictions.jsonl").read_text().splitlines()]

    def test_questions_need_no_answers_to_be_predicted(self):
        _, rows = self.evaluation(rows=3)

        def answers(name, data_format, with_answer, without):
            found = []
            for i, content in enumerate((with_answer, without)):
                self.write_rows(f"{name}{i}.jsonl", content)
                found.append(self.predictions(f"{name}{i}", "--set", f"data.format={data_format}", "--set", f"data.eval.path={name}{i}.jsonl"))
            return found
        open_rows = [{"content": rows[0]["content"]}, {**rows[1], "summary": None}, {**rows[2], "summary": " "}]
        conversation = [{"role": "user", "content": rows[0]["content"]}, {"role": "assistant", "content": rows[0]["summary"]},
                        {"role": "user", "content": rows[1]["content"]}]
        for name, data_format, with_answer, without in (
                ("adgen", "adgen", rows, open_rows),
                ("completion", "completion", [{"prompt": row["content"], "completion": row["summary"]} for row in rows],
                 [{"prompt": row["content"]} for row in rows]),
                ("alpaca", "alpaca", [{"instruction": row["content"], "output": row["summary"]} for row in rows],
                 [{"instruction": row["content"], "output": ""} for row in rows]),
                ("chat", "chat", [{"messages": [*conversation, {"role": "assistant", "content": "an end"}]}], [{"messages": conversation}])):
            known, unknown = answers(name, data_format, with_answer, without)
            self.assertEqual([one["reference"] for one in unknown], [None] * len(without))
            self.assertEqual([{**one, "reference": None} for one in known], unknown)
            self.assertTrue(all(one["reference"] for one in known))
        self.write_rows("open.jsonl", open_rows)
        self.assertIn("summary", self.run_command("eval", "-c", "run.yaml", "--set", "data.eval.path=open.jsonl", code=1))
        self.assertIn("reference", self.run_command("eval", "-c", "run.yaml", "--predictions", "adgen1/predictions.jsonl", code=1))
        self.write_rows("empty.jsonl", [{"content": "", "summary": "a"}])
        self.assertIn("content", self.run_command("predict", "-c", "run.yaml", "--set", "data.eval.path=empty.jsonl", code=1))

    def test_a_learned_answer_of_a_conversation_is_an_exact_match(self):
        base, rows = self.evaluation(rows=2)
        self.write_rows("one.jsonl", [{"instruction": row["content"], "output": row["summary"][:6]} for row in rows])
        words = ("--set", "data={format: alpaca, max_source_length: 48, max_target_length: 48, train: {path: one.jsonl}, eval: {path: one.jsonl}}",
                 "--set", "eval.metrics=[exact_match, bleu4]", "--set", "eval.max_new_tokens=16")
        self.run_command("prepare", "-c", "run.yaml", *words)
        self.finetune(*words, "--set", "adapter={r: 16, target_modules: all-linear}", "--set", "train.max_steps=60", "--overwrite")
        records = ("--set", "data.format=records", "--set", "data.eval.path=out/records/eval", "--overwrite")
        of_rows = json.loads(self.run_command("eval", "-c", "run.yaml", "--json", *words))
        of_records = json.loads(self.run_command("eval", "-c", "run.yaml", "--json", *words, *records))
        self.assertEqual((of_rows["exact-match"], of_rows["bleu-4"]), (100, 100))
        self.assertEqual((of_records["exact-match"], of_records["bleu-4"]), (100, 100))

    def test_records_are_evaluated_as_the_rows_they_were_made_of(self):
        self.evaluation()
        self.run_command("prepare", "-c", "run.yaml")
        records = ("--set", "data.format=records", "--set", "data.train.path=out/records/train", "--set", "data.eval.path=out/records/eval")
        of_rows = json.loads(self.run_command("eval", "-c", "run.yaml", "--json", "--set", "run.output_dir=rows"))
        of_records = json.loads(self.run_command("eval", "-c", "run.yaml", "--json", "--set", "run.output_dir=records", *records))
        self.assertEqual({name: value for name, value in of_rows.items() if name != "generation_seconds"},
                         {name: value for name, value in of_records.items() if name != "generation_seconds"})
        self.assertEqual(self.predictions("predicted", *records), self.predictions("also_predicted"))
        self.write_rows("tokens.jsonl", [{"input_ids": [1, 12, 14, 20]}])
        no_text = self.run_command("prepare", "-c", "run.yaml", "--set", "data.format=text", "--set", "data.train.path=train.txt", "--set",
                                   "data.eval.path=train.txt", "--set", "run.output_dir=text", code=1)
        self.assertIn("train.txt", no_text)
        self.write("train.txt", "some words of a text " * 20)
        text = ("--set", "data.eval.path=text/records/train", "--set", "data.format=records", "--set", "run.output_dir=of_text")
        self.run_command("prepare", "-c", "run.yaml", "--set", "data.format=text", "--set", "data.train.path=train.txt", "--set",
                         "data.eval.path=null", "--set", "run.output_dir=text")
        self.assertNotIn("rouge-1", json.loads(self.run_command("eval", "-c", "run.yaml", "--json", *text)))
        self.assertIn("records of text", self.run_command("predict", "-c", "run.yaml", *text, code=2))

    def test_rows_of_tokens_are_answered_in_tokens(self):
        base, _ = self.evaluation()
        ids = [[1, 12, 14, 20, 21], [1, 122, 9]]
        self.write_rows("tokens.jsonl", [{"input_ids": [*ids[0], 7, 8], "labels": [-100] * 5 + [7, 8]}, {"input_ids": ids[1], "labels": [-100] * 3}])
        shutil.copytree(base, self.folder / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
        words = ("--set", "data.format=tokens", "--set", "data.eval.path=tokens.jsonl")
        for model, has_text in ((base, True), ("bare", False)):
            answers = self.predictions(f"of_{has_text}", *words, "--set", f"model.path={model}")
            for answer, prompt in zip(answers, ids, strict=True):
                alone = json.loads(self.run_command("generate", "--model", base, "--dtype", "fp32", "--prompt-ids", ",".join(map(str, prompt)),
                                                    "--max-new-tokens", 8, "--temperature", 0, "--json"))
                self.assertEqual(answer["token_ids"], alone["token_ids"])
                self.assertEqual(answer["prediction"], alone["text"] if has_text else None)
                self.assertEqual(answer["prompt"] is not None, has_text)
        self.assertEqual([one["reference"] is not None for one in self.predictions("again", *words)], [True, False])
        self.write_rows("tokens.jsonl", [{"input_ids": ids[0], "labels": [-100] * 4 + ids[0][-1:]}, {"input_ids": ids[1]}])
        self.assertIn("row 2", self.run_command("predict", "-c", "run.yaml", *words, "--set", "run.output_dir=none", code=1))

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

    def test_an_evaluation_and_predictions_leave_each_other_their_answers(self):
        self.evaluation(rows=3)
        short = ("-c", "run.yaml", "--set", "eval.max_new_tokens=2")

        def answers(folder, name="predictions.jsonl"):
            return (self.folder / folder / name).read_text()
        self.run_command("predict", "-c", "run.yaml", "--set", "run.output_dir=first")
        predicted = answers("first")
        self.run_command("eval", *short, "--set", "run.output_dir=first")
        self.assertEqual(answers("first"), predicted)
        evaluated = answers("first", "eval_predictions.jsonl")
        self.assertNotEqual(evaluated, predicted)
        self.assertIn("existing output", self.run_command("predict", "-c", "run.yaml", "--set", "run.output_dir=first", code=2))

        self.run_command("eval", *short, "--set", "run.output_dir=second")
        self.assertEqual(answers("second"), evaluated)
        self.run_command("predict", "-c", "run.yaml", "--set", "run.output_dir=second")
        self.assertEqual((answers("second"), answers("second", "eval_predictions.jsonl")), (predicted, evaluated))
        self.assertEqual(json.loads((self.folder / "second/eval.json").read_text())["answers"], "eval_predictions.jsonl")

    def test_an_evaluation_keeps_what_stopped_or_whole_predictions_are_there(self):
        self.evaluation(rows=3)
        short = ("-c", "run.yaml", "--set", "eval.max_new_tokens=2")
        part = self.folder / "out/predictions.jsonl.part"
        part.parent.mkdir()
        part.write_text("of another run\n")
        self.run_command("eval", *short)
        self.assertEqual(part.read_text(), "of another run\n")
        self.assertTrue((self.folder / "out/eval_predictions.jsonl").exists())
        self.run_command("predict", "-c", "run.yaml")
        predicted = (self.folder / "out/predictions.jsonl").read_text()
        self.run_command("eval", *short, "--overwrite")
        self.assertEqual((self.folder / "out/predictions.jsonl").read_text(), predicted)
        # The other way round: what an evaluation left, whole or stopped, is not replaced by predictions.
        both = ("--set", "run.output_dir=both")
        self.run_command("eval", *short, *both)
        evaluated = (self.folder / "both/predictions.jsonl").read_text()
        self.run_command("predict", "-c", "run.yaml", *both, "--overwrite")
        self.assertEqual((self.folder / "both/eval_predictions.jsonl").read_text(), evaluated)
        stopped = self.folder / "stopped/predictions.jsonl.part"
        stopped.parent.mkdir()
        stopped.write_text("of an evaluation\n")
        self.run_command("predict", "-c", "run.yaml", "--set", "run.output_dir=stopped")
        self.assertEqual((self.folder / "stopped/eval_predictions.jsonl.part").read_text(), "of an evaluation\n")
        # An evaluation without answers takes the place of one with them.
        bare = ("--set", "run.output_dir=bare")
        self.run_command("eval", *short, *bare)
        self.run_command("eval", *short, *bare, "--overwrite", "--set", "eval.metrics=[]")
        self.run_command("predict", "-c", "run.yaml", *bare)
        self.finetune("--overwrite")  # which removes them all
        self.assertFalse((self.folder / "out/eval_predictions.jsonl").exists())

    def test_evaluation_refuses_what_it_cannot_do(self):
        self.evaluation()
        for words, reason in ((("--set", "data.eval.path=null"), "data.eval.path must be given"),
                              (("--set", "eval.metrics=[rogue]"), "did you mean rouge?"),
                              (("--set", "eval.segmenter=dict"), "eval.dictionary"),
                              (("--set", "generate.num_beams=2", "--set", "generate.temperature=1"), "generate.num_beams")):
            self.assertIn(reason, self.run_command("eval", "-c", "run.yaml", *words, code=2))
        self.run_command("eval", "-c", "run.yaml", "--adapter", "nowhere", code=1)
        for data_format, code in (("text", 2), ("tokens", 1)):
            self.run_command("predict", "-c", "run.yaml", "--set", f"data.format={data_format}", code=code)
        self.assertIn("leave room", self.finetune("--set", "adapter={method: prefix, target_modules: null, r: null, num_virtual_tokens: 255}", code=2))

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

    def test_generate_is_greedy_and_scored(self):
        text = self.run_command("generate", "--model", BASE, "--prompt-ids", "1,12,14", "--max-new-tokens", 5, "--json")
        result = json.loads(text)
        self.assertEqual(set(result), {"text", "token_ids", "logprobs", "score", "finish_reason"})
        self.assertIsNone(result["text"])
        self.write_rows("rows.jsonl", [{"input_ids": [1, 12, 14] + result["token_ids"]}])
        self.assertAlmostEqual(sum(self.score(None)[0]["logprobs"][2:]), result["score"], delta=1e-4)

    def test_ids_of_a_prompt_are_all_numbers(self):
        for ids in ("", "1,", "1,,2", "-1", "x"):
            self.assertIn("--prompt-ids", self.run_command("generate", "--model", BASE, "--prompt-ids", ids, code=2))

    def test_generation_config_says_what_ends_a_text(self):
        shutil.copytree(BASE, self.folder / "base")
        config = json.loads((self.folder / "base/config.json").read_text())
        generate = ("generate", "--model", "base", "--prompt-ids", "1,12,14", "--max-new-tokens", 8, "--json")
        self.write("base/config.json", json.dumps({**config, "eos_token_id": None}))
        (self.folder / "base/generation_config.json").unlink(missing_ok=True)
        ids = json.loads(self.run_command(*generate))["token_ids"]
        self.assertEqual(len(ids), 8)
        self.write("base/generation_config.json", json.dumps({"eos_token_id": [127, ids[2]], "temperature": 0.5}))
        result = json.loads(self.run_command(*generate))
        self.assertEqual((result["token_ids"], result["finish_reason"]), (ids[:ids.index(ids[2]) + 1], "stop"))
        self.run_command("convert", "--input", "base", "--output", "copy")
        self.assertEqual(json.loads((self.folder / "copy/generation_config.json").read_text())["temperature"], 0.5)
        self.assertIsNone(json.loads((self.folder / "copy/config.json").read_text())["eos_token_id"])
        self.write("base/generation_config.json", json.dumps({"eos_token_id": 128}))
        self.assertIn("below vocab_size", self.run_command(*generate, code=1))

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


if __name__ == "__main__":
    main()
