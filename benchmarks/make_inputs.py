#!/usr/bin/env python3
"""Makes what the comparison trains: a random-weight Llama, LoRA adapters on it, and rows of tokens.

usage: make_inputs.py OUT_DIR [--size 110m] [--batch 4] [--seq 128] [--device cpu]
"""
import argparse
import json
import pathlib

import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {
    "15m": dict(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4, intermediate_size=688),
    "110m": dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=12, intermediate_size=2048),
    "370m": dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, num_key_value_heads=16, intermediate_size=2816),
    "7b": dict(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32, intermediate_size=11008),
}

parser = argparse.ArgumentParser()
parser.add_argument("out", type=pathlib.Path)
parser.add_argument("--size", default="110m", choices=SIZES)
parser.add_argument("--batch", type=int, default=4)
parser.add_argument("--seq", type=int, default=128)
parser.add_argument("--device", default="cpu", help="where the weights are drawn")
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

torch.manual_seed(args.seed)
config = LlamaConfig(vocab_size=32000, max_position_embeddings=max(2048, args.seq), tie_word_embeddings=False, **SIZES[args.size])
with torch.device(args.device):
    model = LlamaForCausalLM(config).to(torch.bfloat16)
model.save_pretrained(args.out / "model")


def save_adapter(name, kind=LoraConfig, **options):
    adapted = get_peft_model(model, kind(task_type="CAUSAL_LM", **options))
    with torch.no_grad():  # B starts at zero, which would hide a wrong gradient of A
        for key, parameter in adapted.named_parameters():
            if "lora_B" in key or "lora_E" in key:
                parameter.normal_(0, 0.02)
    adapted.save_pretrained(args.out / name)
    adapted.unload()


def save_rows(name, rows):
    (args.out / name).write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))


def random_row(length):
    return torch.randint(3, config.vocab_size, (length,)).tolist()


save_adapter("adapter", r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
save_adapter("adapter_all_linear", r=16, lora_alpha=32, target_modules="all-linear")
save_adapter("adapter_dora", r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], use_dora=True)
save_adapter("adapter_adalora", AdaLoraConfig, init_r=8, target_r=4, total_step=1000, lora_alpha=16, target_modules=["q_proj", "v_proj"])
save_rows("rows.jsonl", [random_row(args.seq) for _ in range(args.batch)])
# Lengths as prompt and answer of ADGEN rows have them: 44 % of the positions of rows padded to 128 are real.
save_rows("rows_adgen.jsonl", [random_row(length) for length in (38, 45, 49, 52, 56, 61, 69, 80)])
