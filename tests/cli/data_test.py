#!/usr/bin/env python3
"""Rows: record files, conversations and their templates, tokens that are kept, bad rows.

usage: data_test.py PROGRAM SOURCE_DIR [DataTest.TEST...]
"""
import json
import subprocess
import time

from command_line import CliTest, lora, main, PROGRAM, SOURCE


class DataTest(CliTest):
    SMALL_LLAMA = "model={path: null, arch: llama, vocab_size: 2000, hidden_size: 16, intermediate_size: 24, num_hidden_layers: 2, " \
                  "num_attention_heads: 2, max_position_embeddings: 512}"
    TOKENIZER = f"tokenizer.path={SOURCE / 'quickstart/base/tokenizer.model'}"
    CHATS = [{"conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": f"color of {thing}?"},
                                {"from": "gpt", "value": color}, {"from": "human", "value": "sure?"}, {"from": "gpt", "value": "yes"}]}
             for thing, color in (("snow", "white"), ("coal", "black"), ("blood", "red"))]
    OWN_TEMPLATE = '{system: "{content}|", user: "Q: {content}\\nA:", assistant: " {content}{eos}"}'

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

    def test_records_are_not_given_up_for_data_that_are_not_there(self):
        self.text_run()
        self.run_command("prepare", "-c", "text.yaml")
        before = {path: path.read_bytes() for path in (self.folder / "out/records").rglob("*") if path.is_file()}
        self.run_command("prepare", "-c", "text.yaml", "--overwrite", "--set", "data.eval.path=nowhere.jsonl", code=1)
        self.assertEqual({path: path.read_bytes() for path in before}, before)

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


if __name__ == "__main__":
    main()
