"""Writes tests/reference/bias: what PEFT saves and computes when base biases train with LoRA.

Run with torch and peft installed: python make_bias_reference.py. For each of bias: all and bias: lora_only a tiny
two-layer network is trained for a few steps; its adapter directory is what PEFT's save_pretrained writes, and
expected.safetensors holds the output of the trained, the reloaded and the bare model.
"""

import json
import pathlib
import shutil

import peft
import torch
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).parent / "bias"


class Mlp(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up = torch.nn.Linear(6, 8)
        self.down = torch.nn.Linear(8, 4)

    def forward(self, x):
        return self.down(torch.tanh(self.up(x)))


def make(bias):
    torch.manual_seed(7)
    base = Mlp()
    x, target = torch.randn(5, 6), torch.randn(5, 4)
    weights = {name: value.detach().clone() for name, value in base.state_dict().items()}
    expected = {"x": x, "base": base(x).detach()}

    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["up"], bias=bias, init_lora_weights=False)
    model = peft.get_peft_model(base, config)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (model(x) - target).square().mean().backward()
        optimizer.step()
    expected["trained"] = model(x).detach()

    directory = OUT / bias
    model.save_pretrained(directory)
    (directory / "README.md").unlink(missing_ok=True)
    fresh = Mlp()
    fresh.load_state_dict(weights)
    reloaded = peft.PeftModel.from_pretrained(fresh, directory)
    expected["reloaded"] = reloaded(x).detach()
    assert torch.equal(expected["trained"], expected["reloaded"])
    save_file({**{f"base.{k}": v for k, v in weights.items()}, **expected}, directory / "expected.safetensors")
    return [name for name, p in model.named_parameters() if p.requires_grad]


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    trainable = {bias: make(bias) for bias in ("all", "lora_only")}
    versions = {"torch": torch.__version__, "peft": peft.__version__}
    text = json.dumps({"versions": versions, "trainable": trainable}, indent=2)
    (OUT / "versions.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
