#!/usr/bin/env python3
"""Models that lora put into few bits load in transformers with the real bitsandbytes, and mean the same numbers there.

usage: quantized_test.py PROGRAM SOURCE_DIR      (with a Python that has torch, transformers, accelerate and bitsandbytes)

Not part of the test suite, which needs no Python packages; see CONTRIBUTING.md.
"""
import pathlib
import subprocess
import sys
import tempfile

import bitsandbytes as bnb
import torch
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig, LlamaForCausalLM

PROGRAM, SOURCE = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
BASE = SOURCE / "tests/reference/peft/base"
CASES = {
    "nf4": ["--quantize", "nf4"],
    "nf4_double": ["--quantize", "nf4", "--double-quant"],
    "nf4_blocks_of_32": ["--quantize", "nf4", "--block-size", "32"],
    "nf4_bf16": ["--quantize", "nf4", "--dtype", "bf16"],
    "fp4_double": ["--quantize", "fp4", "--double-quant"],
    "int8": ["--quantize", "int8"],
}
FOUR_BITS = {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32}
THEIRS = {
    "nf4": FOUR_BITS | {"bnb_4bit_quant_type": "nf4"},
    "nf4_double": FOUR_BITS | {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4_double": FOUR_BITS | {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
}


def run(folder, *arguments):
    subprocess.run([PROGRAM, *map(str, arguments)], cwd=folder, check=True, capture_output=True, text=True)


def numbers(layer):
    """What bitsandbytes takes a layer's weight for, by its own formula."""
    if isinstance(layer, bnb.nn.Linear8bitLt):
        scale = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
        return layer.weight.data.float() * scale.view(-1, 1) * (1.0 / 127.0)
    state = layer.weight.quant_state
    absmax = state.absmax
    if state.nested:
        absmax = torch.ops.bitsandbytes.dequantize_blockwise.default(absmax, state.state2.absmax, state.state2.code, 256, torch.float32)
        absmax = absmax + state.offset
    codes = layer.weight.data.flatten()
    pairs = torch.stack([codes >> 4, codes & 15], 1).flatten().long()
    scales = absmax.repeat_interleave(state.blocksize)[:pairs.numel()]
    return (state.code[pairs] * scales)[:state.shape.numel()].reshape(state.shape).to(state.dtype)


def check(name, options, folder):
    run(folder, "convert", "--input", BASE, "--output", name, *options, "-q")
    run(folder, "convert", "--input", name, "--output", f"{name}_plain", "-q")
    plain = load_file(folder / f"{name}_plain/model.safetensors")
    model = LlamaForCausalLM.from_pretrained(folder / name, device_map={"": "cpu"})
    layers = {n: m for n, m in model.named_modules() if isinstance(m, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt))}
    if len(layers) != 14:
        return print(f"{name:<18} {len(layers)} layers in few bits instead of 14") is None and False
    worst = max((numbers(layer).float() - plain[f"{n}.weight"].float()).abs().max().item() for n, layer in layers.items())
    print(f"{name:<18} largest difference {worst:.1e}; {against_theirs(name, folder)}")
    return worst == 0


def against_theirs(name, folder):
    """How what we stored differs from what transformers makes of the same base: only bitsandbytes' CPU kernel for the scales'
    second level, which looks numbers up in a table, may choose a neighbour."""
    if name not in THEIRS:
        return "transformers makes no such files"
    config = BitsAndBytesConfig(**THEIRS[name])
    LlamaForCausalLM.from_pretrained(BASE, quantization_config=config, device_map={"": "cpu"}).save_pretrained(folder / f"{name}_theirs")
    ours, theirs = (load_file(folder / f"{name}{end}/model.safetensors") for end in ("", "_theirs"))
    if set(ours) != set(theirs):
        sys.exit(f"{name}: names differ: {sorted(set(ours) ^ set(theirs))[:6]}")
    for key in ours:
        differing = (ours[key].flatten() != theirs[key].flatten()).sum().item()
        if ours[key].shape != theirs[key].shape or differing > (2 if key.endswith(".weight.absmax") else 0):
            sys.exit(f"{name}: {key} differs in {differing} of {ours[key].numel()}")
    return "files as transformers makes them"


def main():
    with tempfile.TemporaryDirectory() as folder:
        good = [check(name, options, pathlib.Path(folder)) for name, options in CASES.items()]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
