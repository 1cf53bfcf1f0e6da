"""What the tests of the program share: they call it as a user does, and read its exit code, its one error line and its files.

usage of each: NAME_test.py PROGRAM SOURCE_DIR [CLASS.TEST...]
"""
import json
import pathlib
import re
import struct
import subprocess
import sys
import tempfile
import unittest

PROGRAM, SOURCE = sys.argv[1], pathlib.Path(sys.argv[2])
BASE = SOURCE / "tests/reference/peft/base"
REFERENCE = SOURCE / "tests/reference/peft"
LORA = REFERENCE / "lora"

RUN_FILE = """
run: {{output_dir: out, device: cpu, seed: 0}}
model: {{path: {base}, dtype: fp32}}
adapter: {{r: 4, lora_alpha: 8, target_modules: [q_proj, v_proj]}}
data: {{format: tokens, train: {{path: rows.jsonl, shuffle: false}}}}
train:
  max_steps: 4
  micro_batch: 2
  optimizer: {{lr: 5.0e-3}}
"""

TEXT_RUN_FILE = """
run: {{output_dir: out, device: cpu, seed: 0}}
model: {{arch: llama, vocab_size: 2000, hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2,
        max_position_embeddings: 256}}
tokenizer: {{path: {tokenizer}}}
adapter: {{method: none}}
data: {{format: adgen, train: {{path: train.jsonl}}, eval: {{path: dev.jsonl}}}}
train: {{max_steps: 3, micro_batch: 2}}
"""


def lora(*arguments, cwd=None):
    return subprocess.run([PROGRAM, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=600)


def read_safetensors(path):
    """The header, and by name (type, shape, bytes)."""
    data = path.read_bytes()
    size, = struct.unpack_from("<Q", data)
    header = json.loads(data[8:8 + size])
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            tensors[name] = (entry["dtype"], entry["shape"], data[8 + size + begin:8 + size + end])
    return header, tensors


def write_safetensors(path, tensors):
    header, offset = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    head = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + b"".join(data for _, _, data in tensors.values()))


class CliTest(unittest.TestCase):
    """A test in a folder of its own, with a run file and rows that it may use."""

    METHODS = {
        "tokens_alone": "{method: trainable_tokens, trainable_token_indices: [12, 14, 2]}",
        "tokens": "{r: 4, target_modules: [q_proj], trainable_token_indices: {embed_tokens: [12, 14], lm_head: [53]}}",
        "lora": "{r: 4, target_modules: [q_proj]}",
        "dora": "{r: 4, use_dora: true, target_modules: [q_proj, embed_tokens]}",
        "pissa": "{r: 4, init_lora_weights: pissa, target_modules: [q_proj]}",
        "eva": "{r: 3, init_lora_weights: eva, eva_config: {rho: 2.0}, target_modules: all-linear}",
        "loftq": "{r: 4, init_lora_weights: loftq, quantization: {bits: 4, double: true}, target_modules: [q_proj, up_proj]}",
        "loftq_twice": "{r: 4, init_lora_weights: loftq, loftq_config: {loftq_bits: 4, loftq_iter: 2}, quantization: {bits: 4}}",
        "adalora": "{method: adalora, init_r: 4, target_r: 2, tinit: 1, tfinal: 2, total_step: 6}",
        "ia3": "{method: ia3}",
        "prefix": "{method: prefix, num_virtual_tokens: 3, prefix_projection: true}",
        "ptuning_v2": "{method: ptuning_v2, pre_seq_len: 3}",
        "prompt": "{method: prompt, num_virtual_tokens: 3}",
        "ptuning": "{method: ptuning, num_virtual_tokens: 3, encoder_reparameterization_type: LSTM, encoder_hidden_size: 8, "
                   "encoder_num_layers: 2, encoder_dropout: 0.2}",
        "bottleneck": "{method: bottleneck, preset: houlsby, reduction_factor: 8, learn_scaling: true}",
    }

    QUICK = SOURCE / "quickstart/base"

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.write("run.yaml", RUN_FILE.format(base=BASE))
        self.write_rows("rows.jsonl", [{"input_ids": [1, 12, 14, 53, 14, 16, 80]}, {"input_ids": [1, 122, 102, 21]}])

    def write(self, name, text):
        (self.folder / name).write_text(text)

    def write_rows(self, name, rows):
        self.write(name, "".join(json.dumps(row) + "\n" for row in rows))

    def finetune(self, *arguments, code=0):
        return self.run_command("finetune", "-c", "run.yaml", *arguments, code=code)

    def run_command(self, *arguments, code=0):
        result = lora(*arguments, cwd=self.folder)
        self.assertEqual(result.returncode, code, result.stderr)
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        self.assertEqual(len(errors), 0 if code == 0 else 1, result.stderr)
        return errors[0] if errors else result.stdout

    def metrics(self, directory="out"):
        return [json.loads(line) for line in (self.folder / directory / "metrics.jsonl").read_text().splitlines()]

    def score(self, adapter, output="scores.jsonl"):
        extra = ["--adapter", adapter] if adapter else []
        self.run_command("score", "--model", BASE, *extra, "--input", "rows.jsonl", "--output", output, "--overwrite", "-q")
        return [json.loads(line) for line in (self.folder / output).read_text().splitlines()]

    def text_run(self, rows=40):
        """A run on text: the quickstart's tokenizer, a small model of its vocabulary, some of its rows."""
        lines = (SOURCE / "quickstart/data/train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        self.write("train.jsonl", "".join(lines[:rows]))
        self.write("dev.jsonl", "".join(lines[rows - 1:rows + 9]))
        self.write("text.yaml", TEXT_RUN_FILE.format(tokenizer=SOURCE / "quickstart/base/tokenizer.model"))

    def with_method(self, adapter):
        text = RUN_FILE.format(base=BASE)
        self.write("run.yaml", re.sub("adapter: .*", lambda _: f"adapter: {adapter}", text))

    def log_of(self, *arguments):
        result = lora("finetune", "-c", "run.yaml", *arguments, cwd=self.folder)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stderr

    def inspect(self, path):
        return json.loads(self.run_command("inspect", path, "--json"))

    def plan(self, *arguments):
        return json.loads(self.run_command("plan", "-c", "run.yaml", "--json", *arguments))


def main():
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
