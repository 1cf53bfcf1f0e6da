#!/usr/bin/env python3
"""What lora export --to peft writes loads in the real PEFT, without a missing or unexpected key, and computes the same there.

usage: export_test.py PROGRAM SOURCE_DIR      (with a Python that has torch, transformers and peft)

Not part of the test suite, which needs no Python packages; see CONTRIBUTING.md. Adapters of the reference are exported, alone
and combined; a combination must also equal what PEFT's own add_weighted_adapter makes of the same adapters.
"""
import json
import pathlib
import subprocess
import sys
import tempfile
import warnings

import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

PROGRAM, SOURCE = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
REFERENCE = SOURCE / "tests/reference/peft"
BASE = REFERENCE / "base"
ROWS = [[1, 12, 14, 53, 14, 16, 80], [1, 122, 102, 21]]
ALONE = ["lora", "rslora", "lora_all_linear_patterns", "lora_regex_layers", "lora_modules_to_save", "lora_embedding"]
COMBINED = {"cat": {}, "linear": {}, "svd": {}, "ties": {"density": 0.5}, "magnitude_prune": {"density": 0.5},
            "ties_svd": {"density": 0.5, "majority_sign_method": "frequency"}}
PAIR, WEIGHTS = ["a", "b"], [0.7, -0.4]


def lora(folder, *arguments):
    subprocess.run([PROGRAM, *map(str, arguments)], cwd=folder, check=True, capture_output=True, text=True)


def score(folder, adapter):
    (folder / "rows.jsonl").write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in ROWS))
    lora(folder, "score", "--model", BASE, "--adapter", adapter, "--input", "rows.jsonl", "--output", "scores.jsonl", "--overwrite")
    return [torch.tensor(json.loads(line)["logprobs"]) for line in (folder / "scores.jsonl").read_text().splitlines()]


def peft_scores(model):
    scores = []
    for ids in ROWS:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        scores.append(logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0])
    return scores


def base_model():
    return LlamaForCausalLM.from_pretrained(BASE, dtype=torch.float32)


def load(adapter):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*adapter keys.*")  # missing ones are a warning in PEFT
        return PeftModel.from_pretrained(base_model(), adapter).eval()


def difference(a, b):
    return max((x - y).abs().max().item() for x, y in zip(a, b))


def report(name, *differences):
    print(f"{name:<28} largest differences {', '.join(f'{value:.1e}' for value in differences)}")
    return max(differences) < 2e-5


def check_alone(case, folder):
    lora(folder, "export", "--model", BASE, "--adapter", REFERENCE / case / "final", "--to", "peft", "--output", case)
    ours, theirs = score(folder, REFERENCE / case / "final"), peft_scores(load(folder / case))
    return report(case, difference(ours, theirs))


def check_combined(kind, options, folder):
    arguments = [part for name in PAIR for part in ("--adapter", REFERENCE / "multi_adapter" / name)]
    for key, value in options.items():
        arguments += ["--" + key.replace("_", "-"), value]
    lora(folder, "export", "--model", BASE, *arguments, "--weights", ",".join(map(str, WEIGHTS)), "--combination-type", kind,
         "--to", "peft", "--output", kind)
    model = PeftModel.from_pretrained(base_model(), REFERENCE / "multi_adapter/a", adapter_name="a")
    model.load_adapter(REFERENCE / "multi_adapter/b", adapter_name="b")
    model.add_weighted_adapter(PAIR, WEIGHTS, "combined", combination_type=kind, **options)
    model.set_adapter("combined")
    theirs = peft_scores(model.eval())
    return report(kind, difference(score(folder, kind), theirs), difference(peft_scores(load(folder / kind)), theirs))


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        failed = [case for case in ALONE if not check_alone(case, folder)]
        failed += [kind for kind, options in COMBINED.items() if not check_combined(kind, options, folder)]
    sys.exit(f"differ from PEFT: {', '.join(failed)}" if failed else 0)


main()
