#!/usr/bin/env python3
"""Adapter methods: every one trains, goes on, scores; bases in few bits; what excludes what.

usage: methods_test.py PROGRAM SOURCE_DIR [MethodsTest.TEST...]
"""
import json
import re
import shutil

from command_line import BASE, CliTest, LORA, lora, main, read_safetensors, REFERENCE, RUN_FILE, SOURCE


class MethodsTest(CliTest):
    SEVERAL = {
        "prefix_and_parallel": "{method: prefix, num_virtual_tokens: 3, prefix_projection: true, "
                               "also: {parallel: {method: bottleneck, preset: parallel, reduction_factor: 8}}}",
        "three": "{r: 4, lora_dropout: 0.1, target_modules: [q_proj], also: {prompt: {method: ptuning, num_virtual_tokens: 3}, "
                 "ranks: {method: adalora, init_r: 4, target_r: 2, tinit: 1, tfinal: 2, total_step: 6, target_modules: [v_proj]}}}",
    }

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

    def test_the_held_out_loss_of_a_run_is_that_of_what_it_saves(self):
        # What is kept between passes must not outlive the step that changes it.
        for name, adapter in self.METHODS.items():
            with self.subTest(name):
                self.with_method(adapter)
                settings = ("--set", "data.eval.path=rows.jsonl", "--set", f"run.output_dir={name}")
                self.finetune("--set", "train.max_steps=6", "--set", "train.eval_interval=2", *settings)
                self.run_command("eval", "-c", "run.yaml", *settings)
                loss = json.loads((self.folder / name / "eval.json").read_text())["loss"]
                self.assertAlmostEqual(self.metrics(name)[-1]["eval_loss"], loss, delta=1e-5 * loss)

    def test_an_evaluation_is_of_what_the_run_left(self):
        held_out = ("--set", "data.eval.path=rows.jsonl", "--set", "train.eval_interval=2")

        def check(name, *words):
            evaluated = json.loads(self.run_command("eval", "--json", "--set", "data.eval.path=rows.jsonl", *words))["loss"]
            self.assertAlmostEqual(self.metrics(name)[-1]["eval_loss"], evaluated, delta=1e-5 * evaluated)
            return evaluated
        freed = ("--set", "run.output_dir=freed", "--set", "freeze.train=[embed_tokens]")
        self.finetune(*held_out, *freed)
        check("freed", "-c", "run.yaml", *freed)
        check("freed", "-c", "run.yaml", "--set", "run.output_dir=freed", "--overwrite")  # whatever else the file says
        self.run_command("merge", "--model", "freed/model", "--adapter", "freed/adapter", "--output", "merged", "-q")
        check("freed", "-c", "run.yaml", *freed, "--overwrite", "--set", "model.path=merged")  # another model, and no adapter on it
        shutil.copytree(self.folder / "freed", self.folder / "moved")
        shutil.rmtree(self.folder / "merged")
        text = (self.folder / "moved/config.yaml").read_text()
        (self.folder / "moved/config.yaml").write_text(re.sub(r"(?m)^model:\n  path: .*", f"model:\n  path: {self.folder / 'gone'}", text))
        check("freed", "-c", "run.yaml", "--set", "run.output_dir=moved", "--overwrite")  # its base has moved, too
        self.write("run.yaml", re.sub("adapter: .*\n", "", RUN_FILE.format(base=BASE)))
        self.run_command("train", "-c", "run.yaml", *held_out, "--set", "run.output_dir=whole")
        whole = check("whole", "-c", "run.yaml", "--set", "run.output_dir=whole")
        base = json.loads(self.run_command("eval", "-c", "run.yaml", "--json", *held_out, "--set", "run.output_dir=other"))["loss"]
        self.assertGreater(base, whole + 0.01)
        self.run_command("train", "-c", "run.yaml", *held_out, "--set", "run.output_dir=other")  # what was evaluated before is no obstacle
        check("other", "-c", "run.yaml", "--set", "run.output_dir=other", "--overwrite")

        stages = "\nstages: [{name: one}, {name: two, train: {optimizer: {lr: 1.0e-2}}}]\n"
        for name, adapter in (("lora", "{r: 4, target_modules: [q_proj]}"), ("loftq", self.METHODS["loftq_twice"]),
                              ("pissa", self.METHODS["pissa"]), ("also", "{method: prompt, num_virtual_tokens: 2, also: {l: {method: lora, r: 2}}}")):
            with self.subTest(name):
                self.write("run.yaml", RUN_FILE.format(base=BASE).replace("adapter: {r: 4, lora_alpha: 8, target_modules: [q_proj, v_proj]}", f"adapter: {adapter}") + stages)
                self.finetune(*held_out, "--set", f"run.output_dir={name}")
                first, second = self.metrics(f"{name}/one"), self.metrics(f"{name}/two")
                self.assertLess(second[-1]["eval_loss"], first[-1]["eval_loss"])
                self.assertAlmostEqual(second[0]["loss"], first[-1]["eval_loss"], delta=1e-5)  # of the same rows, before an update
                for stage in ("one", "two"):
                    check(f"{name}/{stage}", "-c", f"{name}/{stage}/config.yaml", "--set", "run.mode=null")
        # Another one that is named is evaluated.
        self.write("run.yaml", RUN_FILE.format(base=BASE))
        self.finetune(*held_out, "--set", "run.output_dir=own")
        named = self.run_command("eval", "-c", "run.yaml", "--json", *held_out, "--set", "run.output_dir=own", "--set", f"adapter.init_from={LORA / 'final'}", "--set",
                                 "adapter={r: null, lora_alpha: null, target_modules: null}")
        self.assertGreater(abs(json.loads(named)["loss"] - self.metrics("own")[-1]["eval_loss"]), 1e-3)

    def test_eva_begins_beside_another_adapter_as_alone(self):
        for name, adapter in (("alone", self.METHODS["eva"]), ("beside", self.METHODS["eva"][:-1] + ", also: {p: {method: prompt, num_virtual_tokens: 2}}}")):
            self.with_method(adapter)
            self.finetune("--set", f"run.output_dir={name}", "--set", "train.max_steps=1", "--set", "train.optimizer.lr=1.0e-12")
        files = [read_safetensors(self.folder / name / "adapter/adapter_model.safetensors")[1] for name in ("alone", "beside")]
        self.assertEqual({name: tensor[:2] for name, tensor in files[0].items()}, {name: tensor[:2] for name, tensor in files[1].items()})
        self.assertTrue((self.folder / "beside/adapter/p/adapter_config.json").exists())

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
                                                 code=1))
        self.assertFalse((self.folder / "m").exists())

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

    def test_ranks_are_in_the_metrics_and_the_report(self):
        self.with_method(self.METHODS["adalora"])
        self.finetune("--set", "train.max_steps=6")
        lines = self.metrics()
        self.assertEqual([line["rank_budget"] for line in lines], [16, 10, 8, 8, 8, 8])
        self.assertEqual([sum(line["ranks"]) if "ranks" in line else None for line in lines], [None, 10, 8, 8, None, None])
        self.assertTrue(all(line["reg_loss"] > 0 for line in lines))
        self.assertIn("<h2>Ranks</h2>", (self.folder / "out/report.html").read_text())
        self.assertEqual(sum(self.inspect("out/adapter")["adapter"]["ranks"].values()), 8)

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

    def test_a_saved_adapter_brings_what_the_run_file_does_not_say(self):
        for name in ("adalora", "ia3", "prompt", "bottleneck", "tokens_alone"):
            with self.subTest(name):
                self.with_method(self.METHODS[name])
                self.finetune("--set", f"run.output_dir={name}")
                self.with_method(f"{{init_from: {name}/adapter}}")
                self.finetune("--set", f"run.output_dir={name}_on", "--set", "train.max_steps=1")
        self.with_method("{r: 4, target_modules: [q_proj, v_proj]}")
        self.finetune("--set", "run.output_dir=first")

        def on(keys, output, code=0):
            self.with_method(f"{{init_from: first/adapter, {keys}}}")
            return self.finetune("--set", f"run.output_dir={output}", "--set", "train.max_steps=2", code=code)
        on("target_modules: [v_proj, q_proj]", "order")
        on("lora_dropout: 0.5", "dropped")
        config = json.loads((self.folder / "dropped/adapter/adapter_config.json").read_text())
        self.assertEqual(config["lora_dropout"], 0.5)
        self.assertNotEqual(self.metrics("dropped")[0]["loss"], self.metrics("order")[0]["loss"])
        for keys in ("init_lora_weights: pissa", "exclude_modules: [k_proj]", "layers_to_transform: [0]", "r: 8"):
            self.assertIn(f"adapter.{keys.split(':')[0]}", on(keys, "other", code=2))

    def test_an_adapter_that_does_not_fit_is_named(self):
        shutil.copytree(LORA / "final", self.folder / "other")
        file = self.folder / "other/adapter_config.json"
        config = json.loads(file.read_text())
        for change, words in (({"target_modules": ["query_key_value"]}, "query_key_value"), ({"r": 2}, "of another shape"),
                              ({"lora_alpha": 1e308}, "lora_alpha"), ({"init_lora_weights": "corda"}, "corda")):
            file.write_text(json.dumps({**config, **change}))
            error = self.run_command("score", "--model", BASE, "--adapter", "other", "--input", "rows.jsonl", "--output", "s.jsonl", code=1)
            self.assertIn(words, error)
            self.assertIn("other", error)
        file.write_text(json.dumps({**config, "odd\nerror: key": 1}))
        result = lora("score", "--model", BASE, "--adapter", "other", "--input", "rows.jsonl", "--output", "s.jsonl", cwd=self.folder)
        self.assertEqual((result.returncode, "\nerror: key" in result.stderr), (0, False), result.stderr)

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

    def test_models_of_other_quantisers_are_refused(self):
        (self.folder / "gptq").mkdir()
        config = json.loads((BASE / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
        self.write("gptq/config.json", json.dumps(config))
        self.assertIn("gptq", self.run_command("score", "--model", "gptq", "--input", "rows.jsonl", "--output", "s.jsonl", code=1))


if __name__ == "__main__":
    main()
