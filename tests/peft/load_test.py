#!/usr/bin/env python3
"""Adapters that lora trained load in the real PEFT, without a missing or unexpected key, and give the same log-probabilities
there; adapters that PEFT saved load in lora and do the same.

usage: load_test.py PROGRAM SOURCE_DIR      (with a Python that has torch, transformers and peft)

Not part of the test suite, which needs no Python packages; see CONTRIBUTING.md.
"""
import json
import pathlib
import subprocess
import sys
import tempfile
import warnings

import peft
import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

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
    "norms_to_save": "{r: 4, target_modules: [q_proj], modules_to_save: [norm]}",
    "pissa_embedding": "{r: 4, init_lora_weights: pissa, target_modules: [embed_tokens, q_proj]}",
    "embedding": "{r: 4, target_modules: [embed_tokens, v_proj]}",
    "gaussian": "{r: 4, init_lora_weights: gaussian, target_modules: [v_proj]}",
    "orthogonal": "{r: 4, init_lora_weights: orthogonal, target_modules: [q_proj]}",
    "dora": "{r: 4, use_dora: true, target_modules: [q_proj, down_proj]}",
    "dora_embedding": "{r: 4, use_dora: true, target_modules: [embed_tokens, q_proj]}",
    "pissa": "{r: 4, lora_alpha: 4, init_lora_weights: pissa, target_modules: [q_proj, v_proj]}",
    "pissa_niter": "{r: 4, init_lora_weights: pissa_niter_4, use_rslora: true, target_modules: [q_proj, v_proj]}",
    "olora": "{r: 4, init_lora_weights: olora, target_modules: [q_proj, v_proj]}",
    "eva": "{r: 2, lora_alpha: 5, init_lora_weights: eva, eva_config: {rho: 4}, target_modules: all-linear}",
    "eva_dora": "{r: 2, use_dora: true, init_lora_weights: eva, target_modules: [q_proj, down_proj]}",
    "loftq": "{r: 4, init_lora_weights: loftq, quantization: {bits: 4}, target_modules: all-linear}",
    "loftq_iterated": "{r: 4, lora_alpha: 16, init_lora_weights: loftq, loftq_config: {loftq_iter: 3}, quantization: {bits: 4, double: true}}",
    "adalora": "{method: adalora, init_r: 6, target_r: 2, tinit: 1, tfinal: 1, target_modules: [q_proj, v_proj, up_proj]}",
    "adalora_unpruned": "{method: adalora, init_r: 4, target_r: 4, target_modules: [q_proj]}",
    "ia3": "{method: ia3, target_modules: [k_proj, v_proj, down_proj], feedforward_modules: [down_proj]}",
    "tokens": "{r: 4, target_modules: [q_proj], trainable_token_indices: [12, 14, 2]}",
    "tokens_by_module": "{r: 4, target_modules: [q_proj], trainable_token_indices: {embed_tokens: [12, 14], lm_head: [53]}}",
    "tokens_alone": "{method: trainable_tokens, trainable_token_indices: [12, 14, 2]}",
    "tokens_adalora": "{method: adalora, init_r: 4, target_r: 2, tinit: 1, tfinal: 1, target_modules: [q_proj], trainable_token_indices: [12]}",
    "tokens_tied": "{r: 4, target_modules: [q_proj], trainable_token_indices: [12, 14, 2]}",
    "tokens_alone_tied": "{method: trainable_tokens, trainable_token_indices: [12, 14, 2]}",
    "prefix": "{method: prefix, num_virtual_tokens: 5}",
    "prefix_projection": "{method: prefix, num_virtual_tokens: 5, prefix_projection: true, encoder_hidden_size: 32}",
    "ptuning_v2": "{method: ptuning_v2, pre_seq_len: 4}",
    "prompt": "{method: prompt, num_virtual_tokens: 5, prompt_tuning_init: SAMPLE_VOCAB}",
    "ptuning": "{method: ptuning, num_virtual_tokens: 5, encoder_hidden_size: 32}",
    "ptuning_lstm": "{method: ptuning, num_virtual_tokens: 5, encoder_reparameterization_type: LSTM, encoder_hidden_size: 16}",
}
LORA = dict(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])
PEFT_CASES = {
    "lora": lambda: peft.LoraConfig(r=4, **LORA),
    "dora": lambda: peft.LoraConfig(r=4, use_dora=True, **LORA),
    "pissa, unconverted": lambda: peft.LoraConfig(r=4, init_lora_weights="pissa", **LORA),
    "olora, unconverted": lambda: peft.LoraConfig(r=4, init_lora_weights="olora", use_rslora=True, **LORA),
    "norms": lambda: peft.LoraConfig(r=4, modules_to_save=["norm"], **LORA),
    "head, tied": lambda: peft.LoraConfig(r=4, modules_to_save=["lm_head"], **LORA),
    "embedding, tied": lambda: peft.LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["embed_tokens", "q_proj"]),
    "adalora": lambda: peft.AdaLoraConfig(init_r=5, target_r=3, total_step=10, **LORA),
    "ia3": lambda: peft.IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "tokens": lambda: peft.LoraConfig(r=4, trainable_token_indices=[12, 14], **LORA),
    "tokens_by_module": lambda: peft.LoraConfig(r=4, trainable_token_indices={"embed_tokens": [12, 14], "lm_head": [53]}, **LORA),
    "tokens_alone": lambda: peft.TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=[12, 14]),
    "tokens_tied": lambda: peft.LoraConfig(r=4, trainable_token_indices=[12, 14], **LORA),
    "tokens_alone_tied": lambda: peft.TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=[12, 14]),
    "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "ptuning": lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=16),
}


def run(folder, *arguments):
    subprocess.run([PROGRAM, *map(str, arguments)], cwd=folder, check=True, capture_output=True, text=True)


def base_of(name, folder):
    """The base, or for names with tied the same whose embedding is its head as well."""
    if "tied" not in name:
        return BASE
    tied = folder / "base"
    if not tied.exists():
        config = LlamaConfig.from_pretrained(BASE, tie_word_embeddings=True)
        model = LlamaForCausalLM(config)
        state = LlamaForCausalLM.from_pretrained(BASE, dtype=torch.float32).state_dict()
        model.load_state_dict({key: value for key, value in state.items() if key != "lm_head.weight"}, strict=False)
        model.tie_weights()
        model.save_pretrained(tied)
    return tied


def log_probabilities(model, ids):
    """Embedded virtual tokens have logits in PEFT, before those of the row."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -len(ids):][:-1]
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def check(name, adapter, folder):
    (folder / "run.yaml").write_text(
        f"run: {{output_dir: out, device: cpu}}\nmodel: {{path: {base_of(name, folder)}, dtype: fp32}}\nadapter: {adapter}\n"
        "data: {format: tokens, train: {path: rows.jsonl}}\ntrain: {max_steps: 5, micro_batch: 2, optimizer: {lr: 1.0e-2}}\n")
    (folder / "rows.jsonl").write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in ROWS))
    run(folder, "finetune", "-c", "run.yaml", "-q")
    return compare(name, folder, "out/adapter", rounded_base(name, folder))


def rounded_base(name, folder):
    """Plain numbers of the base in few bits that a LoftQ adapter fits."""
    if not name.startswith("loftq"):
        return None
    few_bits = folder / "out/base"
    if not few_bits.exists():
        few_bits = folder / "few_bits"
        run(folder, "convert", "--input", BASE, "--output", few_bits, "--quantize", "nf4", "-q")
    run(folder, "convert", "--input", few_bits, "--output", "rounded", "-q")
    return folder / "rounded"


def compare(name, folder, adapter, base_folder=None):
    base_folder = base_folder or base_of(name, folder)
    run(folder, "score", "--model", base_folder, "--adapter", adapter, "--input", "rows.jsonl", "--output", "ours.jsonl", "-q")
    ours = [json.loads(line)["logprobs"] for line in (folder / "ours.jsonl").read_text().splitlines()]
    base = LlamaForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    before = log_probabilities(base, ROWS[0])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(base, folder / adapter).eval()
    complaints = [str(one.message) for one in said if "missing" in str(one.message) or "unexpected" in str(one.message)]
    moved = (log_probabilities(model, ROWS[0]) - before).abs().max().item()
    difference = max((log_probabilities(model, row) - torch.tensor(mine)).abs().max().item() for row, mine in zip(ROWS, ours))
    print(f"{name:<24} largest difference {difference:.1e}, moved by {moved:.2f}", *complaints)
    return difference < 2e-5 and moved > 1e-3 and not complaints


def check_from_peft(name, config, folder):
    (folder / "rows.jsonl").write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in ROWS))
    torch.manual_seed(5)
    model = peft.get_peft_model(LlamaForCausalLM.from_pretrained(base_of(name, folder), dtype=torch.float32), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder / "theirs")
    return compare(f"{name}, from PEFT", folder, "theirs")


def main():
    failed = []
    for name, adapter in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            if not check(name, adapter, pathlib.Path(folder)):
                failed.append(name)
    for name, config in PEFT_CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            if not check_from_peft(name, config(), pathlib.Path(folder)):
                failed.append(f"{name}, from PEFT")
    sys.exit(f"differ from PEFT: {', '.join(failed)}" if failed else 0)


main()
