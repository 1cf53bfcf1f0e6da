#!/usr/bin/env python3
"""Memory plans and what they refuse.

usage: plan_test.py PROGRAM SOURCE_DIR [PlanTest.TEST...]
"""
import json

from command_line import BASE, CliTest, main, SOURCE


class PlanTest(CliTest):
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


if __name__ == "__main__":
    main()
