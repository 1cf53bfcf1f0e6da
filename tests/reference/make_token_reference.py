#!/usr/bin/env python3
"""Reference numbers of trainable tokens (PEFT's trainable_token_indices and TRAINABLE_TOKENS), in the form of
make_peft_fixtures.py, on its base and on the same with a tied output head.

Usage: make_token_reference.py     (writes tests/reference/peft/tokens_*)
Needs torch, transformers, peft and safetensors; see peft/README.md for the versions.
"""
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.argv = [sys.argv[0], os.path.join(HERE, "peft")]
sys.path.insert(0, os.path.join(HERE, "peft"))
import make_peft_fixtures as fixtures  # noqa: E402
import torch  # noqa: E402
from peft import LoraConfig, TrainableTokensConfig  # noqa: E402
from transformers import LlamaForCausalLM  # noqa: E402

untied = fixtures.fresh
plain_jitter = fixtures.jitter


def tied(kv=4):
    """The base with its embedding as the head, too."""
    base = untied(kv)
    base.config.tie_word_embeddings = True
    model = LlamaForCausalLM._from_config(base.config, attn_implementation="eager")
    model.load_state_dict({name: value for name, value in base.state_dict().items() if name != "lm_head.weight"}, strict=False)
    model.tie_weights()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.config.name_or_path = model.name_or_path = base.name_or_path
    return model.eval()


def jitter(model, seed):
    """Rows start as the base's, which hides errors."""
    plain_jitter(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "trainable_tokens_delta" in name:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def main():
    # Tokens of the batch (one as input and target, one in the prompt alone) and one that is in none.
    ids = fixtures.batch()["input_ids"]
    tokens = [int(ids[0, 5]), int(ids[1, 1]), int(ids[0, 9]), 2]
    lora = dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    fixtures.jitter = jitter
    for name, base in (("", untied), ("_tied", tied)):
        fixtures.fresh = base
        fixtures.run_case("tokens_lora" + name, LoraConfig(trainable_token_indices=list(tokens), **lora), 70)
        fixtures.run_case("tokens_alone" + name, TrainableTokensConfig(token_indices=list(tokens), task_type="CAUSAL_LM"), 71)
    fixtures.fresh = untied
    by_module = {"embed_tokens": list(tokens), "lm_head": tokens[2:]}
    fixtures.run_case("tokens_by_module", LoraConfig(trainable_token_indices=by_module, **lora), 72)


if __name__ == "__main__":
    main()
