#!/usr/bin/env python3
"""Makes, or checks, the numbers of tests/reference/glm: a tiny random ChatGLM-6B (first version) in plain PyTorch, written from
the published model's description and checked against chatglm.cpp's golden files.

Usage: make_glm_reference.py FOLDER           compares FOLDER/expected.* with this file's numbers
       make_glm_reference.py FOLDER --write   writes FOLDER/expected.safetensors and expected.json anew from FOLDER's model and rows

Needs torch and safetensors. Masks and scores are made whole, and nothing is shared with the library's way of computing: no rotation
in pairs, no fused norm, no kernel for contexts.
"""
import json
import math
import pathlib
import sys

import torch
from safetensors.torch import load_file, save_file

VARIANTS = {"layers_fp32rope": (None, False), "alpha28_fp16rope": (28, True)}


def places(ids, config):
    """Both positions of every token, and who may not look at whom."""
    context = ids.index(config["bos_token_id"])
    known = config["gmask_token_id"] if config["gmask_token_id"] in ids else config["mask_token_id"]
    length, mask = len(ids), ids.index(known)
    sequence = [i if i < context else mask for i in range(length)]
    block = [0 if i < context else i - context + 1 for i in range(length)]
    hidden = [[j > i and j >= context for j in range(length)] for i in range(length)]
    return torch.tensor([sequence, block]), torch.tensor(hidden)


def rotated(x, position, frequencies):
    """x (S, H, K) turned by position: number i with number i + K/2."""
    angles = position[:, None].float() * frequencies
    angles = torch.cat([angles, angles], -1)[:, None, :]
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * angles.cos() + turned * angles.sin()


def norm(x, weights, name, eps):
    return torch.nn.functional.layer_norm(x, x.shape[-1:], weights[name + ".weight"], weights[name + ".bias"], eps)


def linear(x, weights, name):
    return x @ weights[name + ".weight"].T + weights[name + ".bias"]


def logits_of(ids, weights, config, alpha_layers, half_precision):
    heads, width = config["num_attention_heads"], config["hidden_size"]
    size, eps = width // heads, config["layernorm_epsilon"]
    frequencies = 1 / 10000 ** (torch.arange(0, size // 2, 2).float() / (size // 2))
    if half_precision:
        frequencies = frequencies.half().float()
    (sequence, block), hidden = places(ids, config)
    alpha = math.sqrt(2 * alpha_layers)
    x = weights["transformer.word_embeddings.weight"][torch.tensor(ids)]
    for layer in range(config["num_layers"]):
        name = f"transformer.layers.{layer}."
        a = norm(x, weights, name + "input_layernorm", eps)
        q, k, v = linear(a, weights, name + "attention.query_key_value").view(len(ids), heads, 3 * size).chunk(3, -1)

        def turned(t):
            first, second = t.chunk(2, -1)
            return torch.cat([rotated(first, sequence, frequencies), rotated(second, block, frequencies)], -1)

        scores = torch.einsum("ihk,jhk->hij", turned(q), turned(k)) / math.sqrt(size)
        seen = torch.einsum("hij,jhk->ihk", scores.masked_fill(hidden, -math.inf).softmax(-1), v).reshape(len(ids), width)
        h = a * alpha + linear(seen, weights, name + "attention.dense")
        m = norm(h, weights, name + "post_attention_layernorm", eps)
        inner = torch.nn.functional.gelu(linear(m, weights, name + "mlp.dense_h_to_4h"), approximate="tanh")
        x = m * alpha + linear(inner, weights, name + "mlp.dense_4h_to_h")
    return norm(x, weights, "transformer.final_layernorm", eps) @ weights["lm_head.weight"].T


def made(folder):
    weights, given = load_file(folder / "model.safetensors"), load_file(folder / "expected.safetensors")
    config = json.loads((folder / "config.json").read_text())
    tensors = {name: tensor for name, tensor in given.items() if name.startswith("in.")}
    rows = tensors["in.input_ids"].tolist()
    losses = {}
    for name, (alpha_layers, half_precision) in VARIANTS.items():
        logits = torch.stack([logits_of(ids, weights, config, alpha_layers or config["num_layers"], half_precision) for ids in rows])
        tensors["out.logits." + name] = logits
        # MindFormers' labels: what follows each place; <sop> itself is no target.
        labels = tensors["in.labels_shifted"]
        total = torch.nn.functional.cross_entropy(logits.flatten(0, 1).double(), labels.flatten(), reduction="sum")
        losses["loss_valid_tokens_" + name] = repr(float(total / (labels != -100).sum()))
        losses["loss_all_positions_" + name] = repr(float(total / labels.numel()))
    return tensors, losses


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1])
    with torch.no_grad():
        tensors, losses = made(folder)
    if "--write" in sys.argv:
        save_file(tensors, folder / "expected.safetensors", metadata=losses)
        (folder / "expected.json").write_text(json.dumps(losses, indent=1))
        return 0
    kept, kept_losses = load_file(folder / "expected.safetensors"), json.loads((folder / "expected.json").read_text())
    worst = max(float((tensors[name] - kept[name]).abs().max()) for name in tensors if name.startswith("out."))
    worst_loss = max(abs(float(losses[name]) - float(kept_losses[name])) for name in losses)
    print(f"largest difference of logits {worst:.2e}, of losses {worst_loss:.2e}")
    return 0 if worst < 1e-5 and worst_loss < 1e-6 else 1


if __name__ == "__main__":
    sys.exit(main())
