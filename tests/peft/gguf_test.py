#!/usr/bin/env python3
"""The official GGUF reader reads what lora export writes, and finds in it the updates of the PEFT files.

usage: gguf_test.py PROGRAM SOURCE_DIR      (with a Python that has gguf, numpy and safetensors)

Not part of the test suite, which needs no Python packages; see CONTRIBUTING.md. Everything is computed here from PEFT's
files: llama.cpp's update alpha / rank * B A of every module, in its order of rows, must equal scale * B A.
"""
import json
import math
import pathlib
import re
import subprocess
import sys
import tempfile

import gguf
import numpy
from safetensors.numpy import load_file

PROGRAM, SOURCE = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
REFERENCE = SOURCE / "tests/reference/peft"
CASES = {"lora": "base", "lora_gqa": "base_gqa", "rslora": "base", "lora_all_linear_patterns": "base",
         "lora_regex_layers": "base", "lora_embedding": "base"}
NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
TOLERANCES = {"f32": 1e-6, "f16": 2e-3, "bf16": 2e-2}


def by_pattern(patterns, path, otherwise):
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", path)), otherwise)


def gguf_name(path):
    if path == "model.embed_tokens":
        return "token_embd"
    if path == "lm_head":
        return "output"
    layer, name = re.match(r"model\.layers\.(\d+)\.(.*)", path).groups()
    return f"blk.{layer}.{NAMES[name]}"


def in_pairs(update, heads):
    """Rows i and i + K/2 of a head side by side."""
    rows = update.shape[0]
    return update.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(rows, -1)


def expected_updates(adapter, base):
    """GGUF name -> (out, in) update of the weight."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    model = json.loads((base / "config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors")
    updates = {}
    for name, a in tensors.items():
        found = re.match(r"base_model\.model\.(.*)\.lora_(embedding_)?A(\.weight)?$", name)
        if not found:
            continue
        path = found[1]
        b = tensors[name.replace("lora_A", "lora_B").replace("lora_embedding_A", "lora_embedding_B")]
        rank = by_pattern(config["rank_pattern"], path, config["r"])
        alpha = by_pattern(config["alpha_pattern"], path, config["lora_alpha"])
        update = b.astype(float) @ a.astype(float) * (alpha / (math.sqrt(rank) if config["use_rslora"] else rank))
        if path.endswith("q_proj"):
            update = in_pairs(update, model["num_attention_heads"])
        if path.endswith("k_proj"):
            update = in_pairs(update, model["num_key_value_heads"])
        updates[gguf_name(path)] = update
    return updates


def values(tensor):
    """As torch has it: the reader lists sizes innermost first."""
    shape = tuple(int(size) for size in reversed(tensor.shape))
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(float).reshape(shape)


def check(case, base, dtype, folder):
    adapter, file = REFERENCE / case / "final", folder / f"{case}.{dtype}.gguf"
    subprocess.run([PROGRAM, "export", "--model", REFERENCE / base, "--adapter", adapter, "--to", "gguf", "--output", file,
                    "--dtype", dtype], check=True, capture_output=True, text=True)
    reader = gguf.GGUFReader(file)
    fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert fields["general.architecture"] == "llama" and fields["general.type"] == "adapter" and fields["adapter.type"] == "lora"
    alpha = fields["adapter.lora.alpha"]
    tensors = {tensor.name: values(tensor) for tensor in reader.tensors}
    updates = expected_updates(adapter, REFERENCE / base)
    names = {f"{name}.weight.lora_{factor}" for name in updates for factor in "ab"}
    assert set(tensors) == names, set(tensors) ^ names
    largest = 0
    for name, update in updates.items():
        a, b = tensors[f"{name}.weight.lora_a"], tensors[f"{name}.weight.lora_b"]
        found = b @ (a.T if name == "token_embd" else a) * (alpha / b.shape[1])
        largest = max(largest, numpy.abs(found - update).max() / numpy.abs(update).max())
    print(f"{case:<26} {dtype:<5} {len(tensors):>3} tensors, largest relative difference {largest:.1e}")
    return largest < TOLERANCES[dtype]


def main():
    with tempfile.TemporaryDirectory() as folder:
        failed = [f"{case} ({dtype})" for case, base in CASES.items() for dtype in TOLERANCES
                  if not check(case, base, dtype, pathlib.Path(folder))]
    sys.exit(f"differ: {', '.join(failed)}" if failed else 0)


main()
