"""Writes tests/reference/combine: what PEFT's weighted combinations of LoRA adapters are.

Run with torch, peft and safetensors installed: python make_combine_reference.py. a, b, c and d are adapters of one small
network as PEFT saves them; cases.json lists combinations, expected.safetensors holds each one's factors (CASE/MODULE/A, B)
and update (CASE/MODULE/delta) by module. The random masks of the dare types are drawn by PEFT's own functions after
torch.manual_seed(seed), module after module in the order of their names, all of A's before all of B's.
"""

import json
import math
import pathlib
import shutil

import peft
import torch
from peft.utils import merge_utils
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).parent / "combine"


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(11, 6)
        self.up = torch.nn.Linear(6, 8)
        self.down = torch.nn.Linear(8, 5)

    def forward(self, ids):
        return self.down(torch.tanh(self.up(self.table(ids))))


CONFIGS = {
    "a": dict(r=3, lora_alpha=6, target_modules=["up", "table"]),
    "b": dict(r=3, lora_alpha=4, target_modules=["up", "down"]),
    "c": dict(r=3, lora_alpha=9, target_modules=["table", "up", "down"]),
    "d": dict(r=2, lora_alpha=3, target_modules=["up", "down"], rank_pattern={"up": 4}, alpha_pattern={"down": 5}),
}

CASES = [
    dict(name="linear", adapters=["a", "b", "c"], weights=[0.7, -0.4, 1.2], combination_type="linear"),
    dict(name="linear_one", adapters=["a"], weights=[-0.5], combination_type="svd"),
    dict(name="cat", adapters=["a", "b", "d"], weights=[0.7, -0.4, 0.3], combination_type="cat"),
    dict(name="svd", adapters=["a", "b", "d"], weights=[0.7, -0.4, 0.3], combination_type="svd"),
    dict(name="svd_rank", adapters=["a", "b", "c"], weights=[1, 1, -1], combination_type="svd", svd_rank=2),
    dict(name="magnitude_prune", adapters=["a", "b", "c"], weights=[0.7, 0.4, 1], combination_type="magnitude_prune", density=0.4),
    dict(name="magnitude_prune_svd", adapters=["a", "d"], weights=[0.7, -0.4], combination_type="magnitude_prune_svd", density=0.6),
    dict(name="ties", adapters=["a", "b", "c"], weights=[0.7, 0.4, -1], combination_type="ties", density=0.5),
    dict(name="ties_frequency", adapters=["a", "b", "c"], weights=[0.7, 0.4, 1], combination_type="ties", density=0.8,
         majority_sign_method="frequency"),
    dict(name="ties_all", adapters=["a", "b", "c"], weights=[0.7, 0.4, 1], combination_type="ties", density=1.0),
    dict(name="ties_svd", adapters=["b", "c", "d"], weights=[0.7, 0.4, 1], combination_type="ties_svd", density=0.5, svd_rank=5),
    dict(name="ties_svd_frequency", adapters=["b", "c", "d"], weights=[0.7, 0.4, 1], combination_type="ties_svd", density=0.7,
         majority_sign_method="frequency"),
    dict(name="dare_linear", adapters=["a", "b", "c"], weights=[0.7, -0.4, 1], combination_type="dare_linear", density=0.6, seed=5),
    dict(name="dare_ties", adapters=["a", "b", "c"], weights=[0.7, 0.4, 1], combination_type="dare_ties", density=0.6, seed=6),
    dict(name="dare_linear_svd", adapters=["a", "b", "c"], weights=[0.7, 0.4, 1], combination_type="dare_linear_svd", density=0.6,
         seed=7),
    dict(name="dare_ties_svd", adapters=["a", "b", "c"], weights=[0.7, 0.4, 1], combination_type="dare_ties_svd", density=0.6,
         seed=8, majority_sign_method="frequency"),
]


def factors_of(layer, name):
    if name in layer.lora_A:
        return layer.lora_A[name].weight.data, layer.lora_B[name].weight.data
    return layer.lora_embedding_A[name].data, layer.lora_embedding_B[name].data


def combined_by_peft(model, case, expected):
    arguments = {key: value for key, value in case.items() if key != "name"}
    model.base_model.add_weighted_adapter(adapter_name="new_" + case["name"], **arguments)
    for path in ("down", "table", "up"):
        layer = getattr(model.base_model.model, path)
        name = "new_" + case["name"]
        if name not in layer.lora_A and name not in layer.lora_embedding_A:
            continue
        a, b = factors_of(layer, name)
        put(expected, case, path, a, b, layer.get_delta_weight(name))


def put(expected, case, path, a, b, delta):
    if path == "table":
        delta = delta.T  # as B A
    for key, value in (("A", a), ("B", b), ("delta", delta)):
        expected[f"{case['name']}/{path}/{key}"] = value.detach().clone().contiguous()


def combined_with_masks(model, case, expected):
    torch.manual_seed(case["seed"])
    method = case["combination_type"].removesuffix("_svd")
    extra = {"majority_sign_method": case.get("majority_sign_method", "total")} if method == "dare_ties" else {}
    combine = lambda tensors, weights: getattr(merge_utils, method)(tensors, torch.tensor(weights), case["density"], **extra)
    for path in ("down", "table", "up"):
        layer = getattr(model.base_model.model, path)
        has = [(name, weight) for name, weight in zip(case["adapters"], case["weights"]) if name in layer.scaling]
        factors = [factors_of(layer, name) for name, _ in has]
        scaled = [weight * layer.scaling[name] for name, weight in has]
        if case["combination_type"].endswith("_svd"):
            delta = combine([b @ a * layer.scaling[name] for (a, b), (name, _) in zip(factors, has)], [w for _, w in has])
            u, s, vh = torch.linalg.svd(delta)
            a, b = vh[:3], u[:, :3] * s[:3]
        else:
            roots = [math.sqrt(abs(w)) for w in scaled]
            a = combine([a for a, _ in factors], [math.copysign(root, w) for root, w in zip(roots, scaled)])
            b = combine([b for _, b in factors], roots)
        delta = b @ a
        put(expected, case, path, a, b, delta.T if path == "table" else delta)


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    torch.manual_seed(11)
    model = None
    for name, fields in CONFIGS.items():
        config = peft.LoraConfig(init_lora_weights=False, **fields)
        if model is None:
            model = peft.get_peft_model(Net(), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    with torch.no_grad():  # all of one kind, so that no adapter outweighs the others
        for key, value in model.named_parameters():
            if "lora_" in key:
                value.normal_()
    model.save_pretrained(OUT, save_embedding_layers=False)
    for file in OUT.rglob("README.md"):
        file.unlink()
    expected = {}
    for case in CASES:
        (combined_with_masks if "seed" in case else combined_by_peft)(model, case, expected)
    save_file(expected, OUT / "expected.safetensors")
    versions = {"torch": torch.__version__, "peft": peft.__version__}
    (OUT / "cases.json").write_text(json.dumps({"versions": versions, "cases": CASES}, indent=1) + "\n")


if __name__ == "__main__":
    main()
