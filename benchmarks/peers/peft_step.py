#!/usr/bin/env python3
"""The peer: LoRA training of a Llama checkpoint with transformers + peft, driven over a pipe.

Started by benchmarks/compare.py. Reads one command per line from standard input and answers with one JSON line:
  step N   runs N optimizer steps on the fixed rows; answers seconds (CPU and wall) of each and the last loss
  grads F  writes the adapter's gradients of the fixed rows to a safetensors file
  quit
The first line that it prints, unasked, follows the end of the first step: seconds since the process began.
"""
import time

T0 = time.perf_counter()
import argparse
import json
import os
import resource
import sys

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--adapter", required=True, help="PEFT directory to start from")
parser.add_argument("--rows", required=True, help="JSON lines with input_ids")
parser.add_argument("--dtype", default="bfloat16")
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--lr", type=float, default=1e-4)
args = parser.parse_args()

import torch

torch.set_num_threads(args.threads)
from peft import PeftModel
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

model = LlamaForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype), attn_implementation="sdpa")
model.config.use_cache = False
model = PeftModel.from_pretrained(model, args.adapter, is_trainable=True)
model.train()
parameters = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=0.0)
rows = torch.tensor([json.loads(line)["input_ids"] for line in open(args.rows)])


def step():
    wall, cpu = time.perf_counter(), time.process_time()
    loss = model(input_ids=rows, labels=rows).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - wall, time.process_time() - cpu, float(loss.detach())


def answer(**values):
    values["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(values), flush=True)


def gradients(path):
    loss = model(input_ids=rows, labels=rows).loss
    loss.backward()
    save_file({n.replace(".default", ""): p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, path)
    optimizer.zero_grad(set_to_none=True)
    answer(loss=float(loss.detach()))


started = os.environ.get("BENCH_STARTED")
first = None
for line in sys.stdin:
    words = line.split()
    if words[0] == "step":
        results = [step() for _ in range(int(words[1]))]
        if first is None:
            first = time.time() - float(started) if started else time.perf_counter() - T0
        answer(wall=[r[0] for r in results], cpu=[r[1] for r in results], loss=results[-1][2], first_step_seconds=first)
    elif words[0] == "grads":
        gradients(words[1])
    else:
        break
