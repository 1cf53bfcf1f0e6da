#!/usr/bin/env python3
"""What PEFT's LoftQ makes of weights of the tiny Llama (peft/base), by its own loftq_init with bitsandbytes on the CPU.

Usage: make_loftq_reference.py     (writes tests/reference/loftq)
Needs torch, transformers, peft, safetensors and bitsandbytes (0.50.2); see peft/README.md for the other versions.

loftq_init asks for a GPU by name; here "cuda" is taken for the CPU while it runs, and nothing else is changed.
PEFT's scale is 1 (lora_alpha = r), where its factors are those of the paper. <layer>.<iterations>.{q,a,b}.
"""
import contextlib
import pathlib

import torch
from peft.utils import loftq_utils
from safetensors.torch import load_file, save_file

HERE = pathlib.Path(__file__).parent
LAYERS = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"]
RANK = 4


@contextlib.contextmanager
def cuda_is_the_cpu():
    real = torch.Tensor.to

    def to(self, *arguments, **named):
        arguments = ["cpu" if argument == "cuda" else argument for argument in arguments]
        return real(self, *arguments, **{key: "cpu" if value == "cuda" else value for key, value in named.items()})

    torch.Tensor.to = to
    import bitsandbytes as bnb
    params_to = bnb.nn.Params4bit.to
    bnb.nn.Params4bit.to = lambda self, device: params_to(self, "cpu" if device == "cuda" else device)
    try:
        yield
    finally:
        torch.Tensor.to = real
        bnb.nn.Params4bit.to = params_to


def main():
    torch.set_num_threads(1)
    weights = load_file(HERE / "peft/base/model.safetensors")
    made = {}
    with cuda_is_the_cpu():
        for layer in LAYERS:
            for iterations in (1, 2, 5):
                weight = weights[layer + ".weight"]
                q, a, b = loftq_utils.loftq_init(weight, num_bits=4, reduced_rank=RANK, num_iter=iterations)
                made |= {f"{layer}.{iterations}.{name}": tensor.contiguous() for name, tensor in (("q", q), ("a", a), ("b", b))}
                print(layer, iterations, "error", (weight - q).norm().item(), "->", (weight - q - b @ a).norm().item())
    (HERE / "loftq").mkdir(exist_ok=True)
    save_file(made, HERE / "loftq/expected.safetensors")


if __name__ == "__main__":
    main()
