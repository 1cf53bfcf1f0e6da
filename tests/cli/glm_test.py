#!/usr/bin/env python3
"""ChatGLM and other layouts of published models, with the run files in configs/ on shrunk models.

usage: glm_test.py PROGRAM SOURCE_DIR [GlmTest.TEST...]
"""
import json
import math
import shutil
import struct

from command_line import BASE, CliTest, lora, main, read_safetensors, RUN_FILE, SOURCE


class GlmTest(CliTest):
    GLM = SOURCE / "tests/reference/glm"
    GLM_TOKENIZER = SOURCE / "tests/reference/glm_tokenizer/v2/ice_text.model"
    SMALL_GLM = {"num_layers": 2, "vocab_size": 1344, "hidden_size": 32, "num_attention_heads": 4, "inner_hidden_size": 64,
                 "max_sequence_length": 1024, "mask_token_id": 1000, "gmask_token_id": 1001, "bos_token_id": 1004, "eos_token_id": 1005,
                 "pad_token_id": 3}

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
                         "--set", "log.samples=1", "--set", "generate.max_new_tokens=4", *settings)
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
        self.write_rows("open.json", [{"content": row["content"]} for row in rows])
        self.run_command("predict", "-c", SOURCE / "configs/glm-6b-predict.yaml", *model, "--set", "data.eval.path=open.json", "--set",
                         "run.output_dir=open", "--set", "generate.max_new_tokens=4")
        opened = [json.loads(line) for line in (self.folder / "open/predictions.jsonl").read_text().splitlines()]
        self.assertEqual(opened, [{**one, "reference": None} for one in predictions])
        self.write_rows("tokens.json", [{"input_ids": [20, 30, 1001, 1004], "labels": [-100] * 4}])
        self.run_command("predict", "-c", SOURCE / "configs/glm-6b-predict.yaml", *model, "--set", "data.eval.path=tokens.json", "--set",
                         "data.format=tokens", "--set", "run.output_dir=tokens", "--set", "generate.max_new_tokens=4")
        self.assertEqual(len(json.loads((self.folder / "tokens/predictions.jsonl").read_text())["token_ids"]), 4)

    def test_special_tokens_of_model_and_tokenizer_must_agree(self):
        base = self.folder / self.small_glm()
        config = json.loads((base / "config.json").read_text())
        finetune = ("finetune", "-c", SOURCE / "configs/glm-6b-lora.yaml", "--set", f"model.path={base}", "--set",
                    "data.train.path=adgen.json", "--set", "run.output_dir=out")
        (base / "generation_config.json").unlink()
        for change, words in (({"eos_token_id": 1006}, "<eop>"), ({"pad_token_id": 5000}, "pad_token_id"), ({"pad_token_id": 1004}, "pad_token_id")):
            (base / "config.json").write_text(json.dumps({**config, **change}))
            with self.subTest(words):
                self.assertIn(words, self.run_command(*finetune, code=1))
        self.assertIn("found no directory", self.run_command(*finetune[:3], "--set", "model.path=nowhere", "--set", "data.train.path=adgen.json",
                                                             "--set", "run.output_dir=out", code=1))

    def test_a_prefix_takes_no_positions_of_rows(self):
        long = ("--set", "data.max_source_length=960", "--set", "data.max_target_length=64", "--set", "data.train.path=adgen.json")
        self.run_two_steps("finetune", "glm-6b-ptuning-v2", "--set", f"model.path={self.small_glm()}", *long)

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


if __name__ == "__main__":
    main()
