#!/usr/bin/env python3
"""Reference numbers of prompt tuning and P-tuning where a row's first token is a target, which the last virtual token predicts.

Usage: make_first_target_reference.py     (writes tests/reference/peft/first_target.{json,safetensors})
Every case begins with the encoder's values of the case of the same name in tests/reference/peft, so that nothing else is stored.
Needs torch, transformers, peft and safetensors; see peft/README.md for the versions.
"""
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.argv = [sys.argv[0], os.path.join(HERE, "peft")]
sys.path.insert(0, os.path.join(HERE, "peft"))
import make_peft_fixtures as fixtures  # noqa: E402
import torch  # noqa: E402
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

CASES = {
    "prefix": PrefixTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
    "prompt": PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
    "ptuning_mlp": PromptEncoderConfig(num_virtual_tokens=5, encoder_hidden_size=32, task_type="CAUSAL_LM"),
    "ptuning_lstm": PromptEncoderConfig(num_virtual_tokens=5, encoder_hidden_size=16, encoder_reparameterization_type="LSTM",
                                        encoder_num_layers=1, encoder_dropout=0.0, task_type="CAUSAL_LM"),
}
STEPS = 5


def rows():
    """Every token of the first row is a target; of the second (three tokens of padding) all but the first."""
    batch = fixtures.batch()
    labels = batch["input_ids"].clone()
    labels[batch["attention_mask"] == 0] = -100
    labels[1, 0] = -100
    return batch | {"labels": labels}


def begin(name):
    model = get_peft_model(fixtures.fresh(), CASES[name])
    start = load_file(os.path.join(HERE, "peft", name, "expected.safetensors"))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(start["train." + parameter_name])
    model.train()
    return model


def run(name, batch):
    """Loss, gradients and the losses of some AdamW steps."""
    model = begin(name)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = fixtures.adamw(list(trained.values()))
    losses, gradients = [], {}
    for _ in range(STEPS):
        loss = model(**batch).loss
        loss.backward()
        gradients = gradients or {n: p.grad.clone() for n, p in trained.items()}
        optimizer.step()
        optimizer.zero_grad()
        losses.append(fixtures.f32(loss))
    model.eval()
    with torch.no_grad():
        return losses, fixtures.f32(model(**batch).loss), gradients


def main():
    both = rows()
    batches = {"batch": both, "single": {key: value[:1] for key, value in both.items()}}
    info, tensors = {"steps": STEPS, "versions": fixtures.VERS, "cases": {}}, {"labels": both["labels"]}
    for name in CASES:
        for kind, batch in batches.items():
            losses, final, gradients = run(name, batch)
            info["cases"][f"{name}.{kind}"] = {"step_losses": losses, "final_loss": final}
            tensors |= {f"{name}.{kind}.{n}": value for n, value in gradients.items()}
    save_file(tensors, os.path.join(HERE, "peft", "first_target.safetensors"))
    fixtures.jdump(info, os.path.join(HERE, "peft", "first_target.json"))


if __name__ == "__main__":
    main()
