#!/usr/bin/env python3
"""Adapters that lora trained load in the real PEFT and give the same log-probabilities there.

usage: load_test.py PROGRAM SOURCE_DIR      (with a Python that has torch, transformers and peft)

Not part of the test suite, which needs no Python packages; see CONTRIBUTING.md.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

PROGRAM, SOURCE = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
BASE = SOURCE / "tests/reference/peft/base"
ROWS = [[1, 12, 14, 53, 14, 16, 80], [1, 122, 102, 21]]
CASES = {
    "lora": "{r: 4, lora_alpha: 8, target_modules: [q_proj, v_proj]}",
    "rslora": "{r: 4, lora_alpha: 8, use_rslora: true, target_modules: [q_proj, v_proj]}",
    "all_linear": "{r: 2, lora_alpha: 8, target_modules: all-linear, rank_pattern: {gate_proj: 6}, alpha_pattern: {v_proj: 3}}",
    "regex": "{r: 4, target_modules: '.*layers\\.1\\.mlp\\.(up|down)_proj'}",
    "layers": "{r: 4, target_modules: [k_proj, o_proj], layers_to_transform: [1]}",
    "modules_to_save": "{r: 4, target_modules: [q_proj], modules_to_save: [lm_head]}",
    "embedding": "{r: 4, target_modules: [embed_tokens, v_proj]}",
    "orthogonal": "{r: 4, init_lora_weights: orthogonal, target_modules: [q_proj]}",
}


def run(folder, *arguments):
    subprocess.run([PROGRAM, *map(str, arguments)], cwd=folder, check=True, capture_output=True, text=True)


def log_probabilities(model, ids):
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def check(name, adapter, folder):
    (folder / "run.yaml").write_text(
        f"run: {{output_dir: out, device: cpu}}\nmodel: {{path: {BASE}, dtype: fp32}}\nadapter: {adapter}\n"
        "data: {format: tokens, train: {path: rows.jsonl}}\ntrain: {max_steps: 5, micro_batch: 2, optimizer: {lr: 1.0e-2}}\n")
    (folder / "rows.jsonl").write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in ROWS))
    run(folder, "finetune", "-c", "run.yaml", "-q")
    run(folder, "score", "--model", BASE, "--adapter", "out/adapter", "--input", "rows.jsonl", "--output", "ours.jsonl", "-q")
    ours = [json.loads(line)["logprobs"] for line in (folder / "ours.jsonl").read_text().splitlines()]
    base = LlamaForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    before = log_probabilities(base, ROWS[0])
    model = PeftModel.from_pretrained(base, folder / "out/adapter").eval()
    moved = (log_probabilities(model, ROWS[0]) - before).abs().max().item()
    difference = max((log_probabilities(model, row) - torch.tensor(mine)).abs().max().item() for row, mine in zip(ROWS, ours))
    print(f"{name:<16} largest difference {difference:.1e}, moved by {moved:.2f}")
    return difference < 2e-5 and moved > 1e-3


def main():
    failed = []
    for name, adapter in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            if not check(name, adapter, pathlib.Path(folder)):
                failed.append(name)
    sys.exit(f"differ from PEFT: {', '.join(failed)}" if failed else 0)


main()
