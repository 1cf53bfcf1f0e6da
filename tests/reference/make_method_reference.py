#!/usr/bin/env python3
"""Reference numbers of PEFT methods that make_peft_fixtures.py leaves out, in the same form.

Usage: make_method_reference.py     (writes tests/reference/peft/{ia3,dora_embedding})
Needs torch, transformers, peft and safetensors; see peft/README.md for the versions.
"""
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.argv = [sys.argv[0], os.path.join(HERE, "peft")]
sys.path.insert(0, os.path.join(HERE, "peft"))
import make_peft_fixtures as fixtures  # noqa: E402
import torch  # noqa: E402
from peft import IA3Config, LoraConfig  # noqa: E402


def jitter_ia3(model, seed):
    """Factors start at one, which hides errors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                parameter.mul_(1 + 0.2 * torch.randn(parameter.shape, generator=generator))


def main():
    lora = fixtures.jitter
    fixtures.run_case("dora_embedding", LoraConfig(r=3, lora_alpha=6, use_dora=True, target_modules=["embed_tokens", "q_proj"],
                                                   task_type="CAUSAL_LM"), 61)
    fixtures.jitter = jitter_ia3
    fixtures.run_case("ia3", IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"],
                                       task_type="CAUSAL_LM"), 60)
    fixtures.jitter = lora


if __name__ == "__main__":
    main()
