#!/usr/bin/env python3
"""Makes what the comparison trains: a random-weight Llama, LoRA adapters on it, rows of tokens, and a ChatGLM of the same size
(glm_model, glm_adapter, glm_rows.jsonl), whose layers have as many weights where the Llama's feed-forward is 8/3 as wide as its stream.

usage: make_inputs.py OUT_DIR [--size 110m] [--batch 4] [--seq 128] [--device cpu]
"""
import argparse
import json
import pathlib

import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from safetensors.torch import save_file
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


def glm_weights(shape, vocabulary):
    """Names and tensors as ChatGLM-6B's files have them."""
    hidden = shape["hidden_size"]

    def drawn(*sizes):
        return torch.empty(sizes, device=args.device).normal_(0, 0.02).to(torch.bfloat16)

    yield "transformer.word_embeddings.weight", drawn(vocabulary, hidden)
    for layer in range(shape["num_hidden_layers"]):
        for name, (outputs, inputs) in {"attention.query_key_value": (3 * hidden, hidden), "attention.dense": (hidden, hidden),
                                        "mlp.dense_h_to_4h": (4 * hidden, hidden), "mlp.dense_4h_to_h": (hidden, 4 * hidden)}.items():
            yield f"transformer.layers.{layer}.{name}.weight", drawn(outputs, inputs)
            yield f"transformer.layers.{layer}.{name}.bias", drawn(outputs)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"transformer.layers.{layer}.{name}.weight", 1 + drawn(hidden)
            yield f"transformer.layers.{layer}.{name}.bias", drawn(hidden)
    yield "transformer.final_layernorm.weight", 1 + drawn(hidden)
    yield "transformer.final_layernorm.bias", drawn(hidden)
    yield "lm_head.weight", drawn(vocabulary, hidden)


def save_glm(shape, vocabulary):
    gmask, sop, eop, mask = vocabulary - 6, vocabulary - 3, vocabulary - 2, vocabulary - 7
    folder, hidden, layers = args.out / "glm_model", shape["hidden_size"], shape["num_hidden_layers"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["ChatGLMModel"], "model_type": "chatglm", "torch_dtype": "bfloat16", "vocab_size": vocabulary,
        "hidden_size": hidden, "num_layers": layers, "num_attention_heads": shape["num_attention_heads"],
        "inner_hidden_size": 4 * hidden, "max_sequence_length": max(2048, args.seq), "layernorm_epsilon": 1e-5,
        "position_encoding_2d": True, "gmask_token_id": gmask, "mask_token_id": mask, "bos_token_id": sop, "eos_token_id": eop,
        "pad_token_id": 3, "tie_word_embeddings": False}))
    save_file({name: tensor.cpu() for name, tensor in glm_weights(shape, vocabulary)}, folder / "model.safetensors", metadata={"format": "pt"})
    adapter = args.out / "glm_adapter"
    adapter.mkdir(exist_ok=True)
    LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=["query_key_value"]).save_pretrained(adapter)
    factors = {}
    for layer in range(layers):
        place = f"base_model.model.transformer.layers.{layer}.attention.query_key_value"
        factors[f"{place}.lora_A.weight"], factors[f"{place}.lora_B.weight"] = torch.randn(8, hidden) * 0.02, torch.randn(3 * hidden, 8) * 0.02
    save_file(factors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    # A third of a row is its prompt, which begins the answer with [gMASK] and <sop>; all are targets, as in rows.jsonl.
    prompt = args.seq // 3
    save_rows("glm_rows.jsonl", [[*torch.randint(5, mask, (prompt,)).tolist(), gmask, sop,
                                  *torch.randint(5, mask, (args.seq - prompt - 2,)).tolist()] for _ in range(args.batch)])


save_glm(SIZES[args.size], config.vocab_size)
