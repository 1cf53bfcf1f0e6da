#!/usr/bin/env python3
"""Compares the memory that `lora plan` predicts with what the run then takes.

usage: plan_check.py [CASE...] [--program build/release/bin/lora] [--steps 3] [--json FILE]

Every case is a model of random weights, made by the program itself or, where they stay on disk, by this script, and rows
of random tokens, in a temporary folder. The measure is the process' largest resident set from start to end, as
/usr/bin/time -v gives it. Prints a line per case and
exits with 1 when a prediction is more than 10 % off.
"""
import argparse
import json
import math
import os
import pathlib
import random
import subprocess
import sys
import tempfile

LARGEST_ERROR = 0.1


def model(hidden, inner, layers, heads, kv_heads, vocabulary, tied=False):
    return {"arch": "llama", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocabulary,
            "max_position_embeddings": 2048, "tie_word_embeddings": tied}


def glm(hidden, layers, heads, vocabulary):
    return {"arch": "glm", "hidden_size": hidden, "inner_hidden_size": 4 * hidden, "num_layers": layers,
            "num_attention_heads": heads, "vocab_size": vocabulary, "max_sequence_length": 2048,
            "mask_token_id": vocabulary - 6, "gmask_token_id": vocabulary - 5, "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1}


M134 = model(768, 2048, 12, 12, 12, 32000)
M370 = model(1024, 2816, 24, 16, 16, 32000)
G134 = glm(768, 12, 12, 32000)
SMALL = model(512, 1376, 8, 8, 8, 8000)
GROUPED = model(1024, 2816, 6, 16, 4, 16000, tied=True)
H640, H640_TIED = model(640, 1760, 10, 10, 2, 50000), model(640, 1760, 10, 10, 2, 50000, tied=True)
H1280, H1280_TIED = model(1280, 3456, 6, 20, 5, 50000), model(1280, 3456, 6, 20, 20, 50000, tied=True)
H768 = model(768, 2304, 7, 12, 6, 24000)
H896, H896_TIED = model(896, 2400, 9, 14, 2, 50000), model(896, 2400, 9, 14, 14, 30000, tied=True)
QV, ALL = {"r": 8, "target_modules": ["q_proj", "v_proj"]}, {"r": 16, "target_modules": "all-linear"}
ALL64 = ALL | {"r": 64}
NF4 = {"quantization": {"bits": 4, "double": True}}


def method(name, **keys):
    return {"method": name} | keys


PARALLEL = method("bottleneck", preset="parallel", reduction_factor=8)

# Command, model, its dtype, mixed precision, adapter, rows of a micro-batch, their tokens (one number, or the fewest and the
# most); other keys. With `model.offload` the weights come from files.
CASES = {
    "134m_bf16_4x128": ("finetune", M134, "bf16", "fp32", QV, 4, 128, {}),
    "134m_bf16_1x1024": ("finetune", M134, "bf16", "fp32", QV, 1, 1024, {}),
    "134m_fp32_all_linear": ("finetune", M134, "fp32", "fp32", ALL, 4, 128, {}),
    "134m_recompute_full": ("finetune", M134, "bf16", "fp32", QV, 16, 128, {"train": {"recompute": "full"}}),
    "134m_recompute_selective": ("finetune", M134, "bf16", "fp32", QV, 16, 128, {"train": {"recompute": "selective"}}),
    "134m_packed": ("finetune", M134, "bf16", "fp32", QV, 2, 60, {"data": {"packing": True, "max_length": 512}}),
    "134m_amp_bf16": ("finetune", M134, "fp32", "bf16", QV, 4, 128, {}),
    "134m_bf16_1x128": ("finetune", M134, "bf16", "fp32", QV, 1, 128, {}),
    "134m_bf16_16x128": ("finetune", M134, "bf16", "fp32", QV, 16, 128, {}),
    "134m_bf16_1x2048": ("finetune", M134, "bf16", "fp32", QV, 1, 2048, {}),
    "134m_offload_none": ("finetune", M134, "bf16", "fp32", QV, 4, 128, {"model": {"offload": "none"}}),
    "134m_offload_disk": ("finetune", M134, "bf16", "fp32", QV, 4, 128, {"model": {"offload": "disk"}}),
    "370m_offload_none": ("finetune", M370, "bf16", "fp32", QV, 4, 128, {"model": {"offload": "none"}}),
    "370m_offload_disk": ("finetune", M370, "bf16", "fp32", QV, 4, 128, {"model": {"offload": "disk"}}),
    "134m_full_bf16": ("train", M134, "bf16", "fp32", None, 4, 128, {}),
    "small_full_bf16": ("train", SMALL, "bf16", "fp32", None, 4, 128, {}),
    "grouped_full_bf16_2x512": ("train", GROUPED, "bf16", "fp32", None, 2, 512, {"train": {"recompute": "full"}}),
    "small_full_fp32": ("train", SMALL, "fp32", "fp32", None, 4, 128, {}),
    "small_full_amp_bf16": ("train", SMALL, "fp32", "bf16", None, 4, 128, {}),
    "small_full_accumulated": ("train", SMALL, "fp32", "fp32", None, 4, 128, {"train": {"grad_accum": 3}}),
    "grouped_tied_bf16": ("finetune", GROUPED, "bf16", "fp32", ALL, 8, 256, {}),
    "grouped_tied_fp32": ("finetune", GROUPED, "fp32", "fp32", QV, 4, 256, {}),
    "wide_bf16_3x384": ("finetune", model(1536, 4096, 4, 24, 8, 24000), "bf16", "fp32", ALL, 3, 384, {}),
    "deep_amp_bf16_6x96": ("finetune", model(640, 1728, 20, 10, 10, 10000), "fp32", "bf16", ALL, 6, 96, {}),
    "134m_dropout": ("finetune", M134, "bf16", "fp32", QV | {"lora_dropout": 0.05}, 8, 128, {}),
    "wide_dropout_2x384": ("finetune", model(1536, 4096, 4, 24, 8, 24000), "bf16", "fp32", ALL | {"lora_dropout": 0.1}, 2, 384, {}),
    "small_dropout": ("finetune", SMALL, "bf16", "fp32", ALL | {"lora_dropout": 0.1}, 8, 128, {}),
    "h640_tied_bf16_1x64": ("finetune", H640_TIED, "bf16", "fp32", QV, 1, 64, {}),
    "h640_all64_bf16_32x64": ("finetune", H640, "bf16", "fp32", ALL64, 32, 64, {}),
    "h640_fp32_full_recompute": ("finetune", H640, "fp32", "fp32", ALL64, 32, 64, {"train": {"recompute": "full"}}),
    "h640_packed_long": ("finetune", H640, "bf16", "fp32", ALL64, 2, (200, 900), {"data": {"packing": True, "max_length": 1024}}),
    "h640_packed_amp": ("finetune", H640_TIED, "fp32", "bf16", QV, 3, (20, 400), {"data": {"packing": True, "max_length": 512}}),
    "h640_train_accumulated": ("train", H640_TIED, "bf16", "fp32", None, 6, 300, {"train": {"grad_accum": 4}}),
    "h640_train_amp": ("train", H640, "fp32", "bf16", None, 1, 64, {}),
    "h640_train_selective": ("train", H640, "bf16", "fp32", None, 6, 300, {"train": {"recompute": "selective"}}),
    "h640_accumulated": ("finetune", H640, "fp32", "fp32", ALL64, 6, 300, {"train": {"grad_accum": 3}}),
    "h640_accumulated_bf16": ("finetune", H640_TIED, "bf16", "fp32", QV, 6, 300, {"train": {"grad_accum": 3}}),
    "h1280_bf16_6x300": ("finetune", H1280, "bf16", "fp32", QV, 6, 300, {}),
    "h1280_fp32_2x200": ("finetune", H1280_TIED, "fp32", "fp32", ALL64, 2, 200, {}),
    "h1280_amp_6x300": ("finetune", H1280, "fp32", "bf16", ALL64, 6, 300, {}),
    "h1280_selective_6x300": ("finetune", H1280, "bf16", "fp32", ALL64, 6, 300, {"train": {"recompute": "selective"}}),
    "h768_bf16_7x160": ("finetune", H768, "bf16", "fp32", ALL64, 7, 160, {}),
    "h768_bf16_full": ("finetune", H768, "bf16", "fp32", QV, 10, 200, {"train": {"recompute": "full"}}),
    "h768_amp_selective": ("finetune", H768, "fp32", "bf16", ALL, 4, 500, {"train": {"recompute": "selective"}}),
    "h768_fp32_accumulated": ("finetune", H768, "fp32", "fp32", QV, 3, 320, {"train": {"grad_accum": 4}}),
    "h896_bf16_5x200": ("finetune", H896, "bf16", "fp32", ALL, 5, 200, {}),
    "h896_fp32_selective": ("finetune", H896_TIED, "fp32", "fp32", QV, 3, 400, {"train": {"recompute": "selective"}}),
    "h896_bf16_full": ("finetune", H896, "bf16", "fp32", ALL64, 8, 256, {"train": {"recompute": "full"}}),
    "h896_train_amp": ("train", H896_TIED, "fp32", "bf16", None, 2, 256, {"train": {"grad_accum": 2}}),
    "h896_packed_dropout": ("finetune", H896, "bf16", "fp32", ALL | {"lora_dropout": 0.05}, 1, (30, 500),
                            {"data": {"packing": True, "max_length": 1000}}),
    "134m_nf4": ("finetune", M134, "bf16", "fp32", QV | NF4, 4, 128, {}),
    "134m_nf4_full": ("finetune", M134, "bf16", "fp32", QV | NF4, 16, 128, {"train": {"recompute": "full"}}),
    "370m_nf4": ("finetune", M370, "bf16", "fp32", QV | NF4, 4, 128, {}),
    "h1280_nf4_all": ("finetune", H1280, "bf16", "fp32", ALL64 | NF4, 6, 300, {}),
    "h896_nf4_fp32": ("finetune", H896, "fp32", "fp32", ALL | NF4, 5, 200, {}),
    "h640_nf4_amp": ("finetune", H640_TIED, "fp32", "bf16", QV | NF4, 6, 300, {}),
    "h768_nf4_full": ("finetune", H768, "bf16", "fp32", QV | NF4, 10, 200, {"train": {"recompute": "full"}}),
    "h1280_nf4_selective": ("finetune", H1280, "bf16", "fp32", ALL64 | NF4, 6, 300, {"train": {"recompute": "selective"}}),
    "wide_int8": ("finetune", model(1536, 4096, 4, 24, 8, 24000), "bf16", "fp32", ALL | {"quantization": {"bits": 8}}, 3, 384, {}),
    "134m_pissa": ("finetune", M134, "bf16", "fp32", ALL | {"init_lora_weights": "pissa_niter_4"}, 4, 128, {}),
    "134m_dora": ("finetune", M134, "bf16", "fp32", ALL | {"use_dora": True}, 4, 128, {}),
    "134m_dora_fp32": ("finetune", M134, "fp32", "fp32", ALL | {"use_dora": True}, 8, 128, {}),
    "134m_adalora": ("finetune", M134, "bf16", "fp32", method("adalora", init_r=12, target_modules="all-linear"), 4, 128, {}),
    "134m_ia3": ("finetune", M134, "bf16", "fp32", method("ia3"), 8, 128, {}),
    "134m_prefix": ("finetune", M134, "bf16", "fp32", method("prefix", num_virtual_tokens=20), 8, 128, {}),
    "134m_prefix_projection": ("finetune", M134, "fp32", "fp32",
                               method("prefix", num_virtual_tokens=20, prefix_projection=True, encoder_hidden_size=128), 4, 128, {}),
    "h640_prefix": ("finetune", H640, "bf16", "fp32", method("prefix", num_virtual_tokens=20), 6, 300, {}),
    "134m_ptuning_v2": ("finetune", M134, "bf16", "fp32", method("ptuning_v2", pre_seq_len=128), 4, 128,
                        {"train": {"recompute": "full"}}),
    "134m_prompt": ("finetune", M134, "bf16", "fp32", method("prompt", num_virtual_tokens=20), 8, 128, {}),
    "134m_prompt_packed": ("finetune", M134, "bf16", "fp32", method("prompt", num_virtual_tokens=20), 2, 60,
                           {"data": {"packing": True, "max_length": 512}}),
    "134m_ptuning": ("finetune", M134, "bf16", "fp32", method("ptuning", num_virtual_tokens=20, encoder_hidden_size=128), 8, 128, {}),
    "134m_ptuning_lstm": ("finetune", M134, "bf16", "fp32",
                          method("ptuning", num_virtual_tokens=20, encoder_hidden_size=256, encoder_reparameterization_type="LSTM"),
                          8, 128, {}),
    "134m_houlsby": ("finetune", M134, "bf16", "fp32", method("bottleneck", preset="houlsby"), 8, 128, {}),
    "134m_pfeiffer_fp32": ("finetune", M134, "fp32", "fp32", method("bottleneck", preset="pfeiffer"), 4, 128, {}),
    "134m_parallel": ("finetune", M134, "bf16", "fp32", PARALLEL, 8, 128, {}),
    "134m_parallel_amp": ("finetune", M134, "fp32", "bf16", PARALLEL, 8, 128, {}),
    "134m_prefix_and_parallel": ("finetune", M134, "bf16", "fp32",
                                 method("prefix", num_virtual_tokens=20, also={"parallel": PARALLEL}), 8, 128, {}),
    "glm_134m_bf16": ("finetune", G134, "bf16", "fp32", {"r": 8}, 4, 128, {}),
    "glm_134m_ptuning_v2": ("finetune", G134, "bf16", "fp32", method("ptuning_v2", pre_seq_len=128), 4, 128, {}),
    "h1280_offload_disk": ("finetune", H1280_TIED, "bf16", "fp32", ALL64, 6, 300, {"model": {"offload": "disk"}}),
}


def weight_shapes(shape):
    """Names and shapes as transformers saves them."""
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    shared = hidden // shape["num_attention_heads"] * shape["num_key_value_heads"]
    yield "model.embed_tokens.weight", [shape["vocab_size"], hidden]
    for layer in range(shape["num_hidden_layers"]):
        for name, size in {"self_attn.q_proj": [hidden, hidden], "self_attn.k_proj": [shared, hidden],
                           "self_attn.v_proj": [shared, hidden], "self_attn.o_proj": [hidden, hidden],
                           "mlp.gate_proj": [inner, hidden], "mlp.up_proj": [inner, hidden], "mlp.down_proj": [hidden, inner],
                           "input_layernorm": [hidden], "post_attention_layernorm": [hidden]}.items():
            yield f"model.layers.{layer}.{name}.weight", size
    yield "model.norm.weight", [hidden]
    if not shape["tie_word_embeddings"]:
        yield "lm_head.weight", [shape["vocab_size"], hidden]


SMALL_HIGH_BYTES = bytes(0x3C | byte & 0x80 for byte in range(256))  # of bf16 numbers between 0.008 and 0.03, of either sign


def write_bf16_model(folder, shape):
    """config.json and model.safetensors with random bf16 weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(
        shape | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "hidden_act": "silu",
                 "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2}))
    header, end = {}, 0
    for name, size in weight_shapes(shape):
        begin, end = end, end + 2 * math.prod(size)
        header[name] = {"dtype": "BF16", "shape": size, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in header.values():
            begin, end = entry["data_offsets"]
            numbers = bytearray(os.urandom(end - begin))
            numbers[1::2] = bytes(numbers[1::2]).translate(SMALL_HIGH_BYTES)
            file.write(numbers)


def random_row(source, shape, length):
    """ChatGLM's with [gMASK] and <sop> before the answer, and none of its special tokens elsewhere."""
    special = [shape[name] for name in ("gmask_token_id", "bos_token_id") if name in shape]
    row = source.choices(range(3, shape["vocab_size"] - 8 * bool(special)), k=length)
    row[length // 3:length // 3 + len(special)] = special
    return row


def write_case(folder, name, steps):
    command, shape, dtype, amp, adapter, rows, length, others = CASES[name]
    source = random.Random(0)
    shortest, longest = length if isinstance(length, tuple) else (length, length)
    rows_of_tokens = [random_row(source, shape, source.randint(shortest, longest)) for _ in range(64)]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows_of_tokens))
    weights = shape | {"dtype": dtype}
    if "model" in others:
        write_bf16_model(folder / "base", shape)
        weights = {"path": "base"} | others["model"]
    run = {"run": {"mode": command, "output_dir": "out", "device": "cpu"}, "model": weights,
           "adapter": adapter or {"method": "none"},
           "data": {"format": "tokens", "max_length": longest, "train": {"path": "rows.jsonl"}} | others.get("data", {}),
           "train": {"max_steps": steps, "micro_batch": rows, "amp": {"dtype": amp}} | others.get("train", {}),
           "log": {"report": False}}
    (folder / "run.yaml").write_text(json.dumps(run))  # JSON is YAML
    return command


def measured_peak(command, folder):
    """Largest resident set of one child, in bytes."""
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"{' '.join(command)} failed:\n{(folder / 'log').read_text()}")
    return usage.ru_maxrss * 1024


def check(program, name, steps):
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        command = write_case(folder, name, steps)
        plan = json.loads(subprocess.run([program, "plan", "-q", "-c", "run.yaml", "--json"], cwd=folder, check=True,
                                         capture_output=True, text=True).stdout)
        measured = measured_peak([program, command, "-c", "run.yaml"], folder)
    return {"case": name, "predicted_bytes": plan["peak_bytes"], "measured_bytes": measured,
            "ratio": plan["peak_bytes"] / measured, "plan": plan}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument("--program", default="build/release/bin/lora", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    results = []
    print(f"{'case':<26}{'predicted':>12}{'measured':>12}{'ratio':>8}")
    for name in args.cases or CASES:
        result = check(str(args.program.resolve()), name, args.steps)
        results.append(result)
        print(f"{name:<26}{result['predicted_bytes'] / 2**20:>8.0f} MiB{result['measured_bytes'] / 2**20:>8.0f} MiB"
              f"{result['ratio']:>8.3f}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(any(abs(result["ratio"] - 1) > LARGEST_ERROR for result in results))


if __name__ == "__main__":
    main()
