#!/usr/bin/env python3
"""Makes what the comparison trains: a random-weight Llama, a LoRA adapter on it, and rows of tokens.

usage: make_inputs.py OUT_DIR [--size 110m] [--batch 4] [--seq 128]
"""
import argparse
import json
import pathlib

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {
    "15m": dict(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4, intermediate_size=688),
    "110m": dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=12, intermediate_size=2048),
}

parser = argparse.ArgumentParser()
parser.add_argument("out", type=pathlib.Path)
parser.add_argument("--size", default="110m", choices=SIZES)
parser.add_argument("--batch", type=int, default=4)
parser.add_argument("--seq", type=int, default=128)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

torch.manual_seed(args.seed)
config = LlamaConfig(vocab_size=32000, max_position_embeddings=2048, tie_word_embeddings=False, **SIZES[args.size])
model = LlamaForCausalLM(config).to(torch.bfloat16)
model.save_pretrained(args.out / "model")
adapted = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
with torch.no_grad():  # B starts at zero, which would hide a wrong gradient of A
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.normal_(0, 0.02)
adapted.save_pretrained(args.out / "adapter")
rows = torch.randint(3, config.vocab_size, (args.batch, args.seq))
(args.out / "rows.jsonl").write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows.tolist()))
