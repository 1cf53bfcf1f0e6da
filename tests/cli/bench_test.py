#!/usr/bin/env python3
"""The benchmark command.

usage: bench_test.py PROGRAM SOURCE_DIR [BenchTest.TEST...]
"""
import json
import re
import sys

from command_line import CliTest, lora, main


class BenchTest(CliTest):
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
        mine = (self.folder / "rows.jsonl").read_bytes()
        out = self.run_command("bench", "--steps", 1, "--new-tokens", 0, "--output", "bench.json", *arguments, "--set", "data.train.path=rows.jsonl")
        self.assertEqual((self.folder / "rows.jsonl").read_bytes(), mine)
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


if __name__ == "__main__":
    main()
