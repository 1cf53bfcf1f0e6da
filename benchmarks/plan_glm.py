#!/usr/bin/env python3
"""Prints the tables of docs/plan-glm.md: what `lora plan` says of ChatGLM-6B on one GPU. Needs neither weights nor a GPU.

usage: plan_glm.py [--program build/release/bin/lora]
"""
import argparse
import itertools
import json
import pathlib
import subprocess
import tempfile

TOKENS, BATCHES, CARDS = 128, range(1, 9), (16, 24, 32, 80, 141)
METHODS = {"all parameters": {"method": "none"},
           "LoRA, r = 8": {"method": "lora", "r": 8},
           "P-tuning v2, 128 tokens": {"method": "ptuning_v2", "pre_seq_len": 128},
           "QLoRA, r = 8, nf4, double": {"method": "lora", "r": 8, "quantization": {"bits": 4, "type": "nf4", "double": True}}}


def plan(program, method, dtype, recompute, micro_batch, gigabytes):
    run = {"run": {"output_dir": "out"}, "model": {"arch": "glm", "preset": "chatglm-6b", "dtype": dtype},
           "adapter": METHODS[method], "train": {"micro_batch": micro_batch, "recompute": recompute},
           "data": {"format": "tokens", "max_length": TOKENS, "train": {"path": "rows.jsonl"}}}
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "run.yaml").write_text(json.dumps(run))  # JSON is YAML
        command = [program, "plan", "-q", "-c", "run.yaml", "--device", "cuda", "--memory", f"{gigabytes}GB", "--json"]
        return json.loads(subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="build/release/bin/lora", type=pathlib.Path)
    program = str(parser.parse_args().program.resolve())
    peaks, fitting = [], []
    for method, dtype, recompute in itertools.product(METHODS, ("bf16", "fp16"), ("none", "full")):
        case = f"| {method} | {dtype} | {recompute} |"
        sizes = [plan(program, method, dtype, recompute, rows, CARDS[0])["peak_bytes"] / 1e9 for rows in BATCHES]
        largest = [plan(program, method, dtype, recompute, 1, card)["largest_micro_batch"] for card in CARDS]
        peaks.append(case + "".join(f" {size:.1f} |" for size in sizes))
        fitting.append(case + "".join(f" {rows or '-'} |" for rows in largest))
    for heads, lines in ((BATCHES, peaks), ([f"{card} GB" for card in CARDS], fitting)):
        print("| trained | dtype | recompute |" + "".join(f" {head} |" for head in heads))
        print("|---" * (3 + len(heads)) + "|", *lines, "", sep="\n")


if __name__ == "__main__":
    main()
