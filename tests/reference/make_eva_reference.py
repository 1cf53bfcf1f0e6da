#!/usr/bin/env python3
"""What PEFT's EVA makes of the tiny Llama (peft/base) and some fixed batches: directions, ranks, alphas, number of passes.

Usage: make_eva_reference.py     (writes tests/reference/eva)
Needs torch, transformers, peft and safetensors; see peft/README.md for the versions.

Every case: <name>.json (passes over batches, rank_pattern, alpha_pattern, target_modules) and <name>.safetensors (A by module).
"""
import json
import pathlib
import warnings

import peft
import torch
import transformers
from peft import EvaConfig, LoraConfig, get_peft_model
from peft.tuners.lora.eva import forward_fn_dict, initialize_lora_eva_weights
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

HERE = pathlib.Path(__file__).parent
OUT = HERE / "eva"
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = {
    "all": dict(r=4, lora_alpha=8, target_modules=ALL, eva_config=EvaConfig()),
    # Ranks of 0, and alphas that are no whole numbers.
    "redistributed": dict(r=3, lora_alpha=10, target_modules=ALL, eva_config=EvaConfig(rho=5.0)),
    "rho_1": dict(r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "v_proj", "down_proj"], eva_config=EvaConfig(rho=1.0, tau=0.999)),
    "patterns": dict(r=4, lora_alpha=8, target_modules=["v_proj", "o_proj", "up_proj"], rank_pattern={"o_proj": 6}, alpha_pattern={"o_proj": 5},
                     eva_config=EvaConfig(rho=1.7, use_label_mask=False, adjust_scaling_factors=False)),
    # Of layers with inputs of their own: PEFT divides those of a shared one once per layer.
    "whitened": dict(r=4, lora_alpha=8, target_modules=["o_proj", "down_proj"], eva_config=EvaConfig(whiten=True, label_mask_value=7)),
}


def batches():
    generator = torch.Generator().manual_seed(11)
    made = []
    for i in range(5):
        rows, length = 4, 14 + i
        ids = torch.randint(3, 128, (rows, length), generator=generator)
        labels = ids.clone()
        labels[:, :4] = -100
        mask = torch.ones_like(ids)
        for row in range(1, rows):
            labels[row, length - row :] = -100
            ids[row, length - row :] = 0
            mask[row, length - row :] = 0
        made.append(dict(input_ids=ids, labels=labels, attention_mask=mask))
    made[2]["labels"][:, 5:] = -100  # too few positions for most cases
    return made


def run(name, options):
    base = LlamaForCausalLM.from_pretrained(HERE / "peft/base", dtype=torch.float32, attn_implementation="eager")
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", init_lora_weights="eva", **options))
    passes = []

    def forward(model, inputs):
        passes.append(1)
        return forward_fn_dict(model, inputs)

    initialize_lora_eva_weights(model, dataloader=batches(), forward_fn=forward, show_progress_bar=False)
    config = model.peft_config["default"]
    a = {key.replace("base_model.model.", "").replace(".lora_A.default.weight", ""): value.detach().contiguous()
         for key, value in model.state_dict().items() if ".lora_A." in key}
    save_file(a, OUT / f"{name}.safetensors")
    said = dict(batches=len(passes) - 1, rank_pattern=config.rank_pattern, alpha_pattern=config.alpha_pattern,
                target_modules=sorted(config.target_modules), ranks={key: value.shape[0] for key, value in a.items()},
                versions=dict(peft=peft.__version__, torch=torch.__version__, transformers=transformers.__version__))
    (OUT / f"{name}.json").write_text(json.dumps(said, indent=1) + "\n")
    print(name, said["batches"], "batches, ranks", sorted(said["ranks"].values()))


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    OUT.mkdir(exist_ok=True)
    save_file({f"{i}.{key}": value for i, batch in enumerate(batches()) for key, value in batch.items()}, OUT / "batches.safetensors")
    for name, options in CASES.items():
        run(name, options)


if __name__ == "__main__":
    main()
