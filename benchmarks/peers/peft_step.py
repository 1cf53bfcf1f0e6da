#!/usr/bin/env python3
"""The peer: training of a Llama checkpoint with transformers + peft, driven over a pipe.

Started by benchmarks/compare.py. Reads one command per line from standard input and answers with one JSON line:
  step N        runs N optimizer steps on the fixed rows; answers seconds (CPU and wall) of each and the last loss
  grads F       writes the gradients of the fixed rows to a safetensors file
  generate N    greedy decoding of N tokens after the first row's first 16; answers seconds and the tokens
  quit
"""
import time

T0 = time.perf_counter()
import argparse
import contextlib
import json
import os
import sys

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--adapter", help="PEFT directory to start from; none: full fine-tuning")
parser.add_argument("--rows", required=True, help="JSON lines with input_ids")
parser.add_argument("--mode", default="eager", choices=["eager", "compile", "autocast"])
parser.add_argument("--pad-to", type=int, default=0, help="pad rows on the right to this length, with a mask")
parser.add_argument("--device", default="cpu")
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--lr", type=float, default=1e-4)
args = parser.parse_args()

import torch

torch.set_num_threads(args.threads)
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

on_gpu = args.device != "cpu"

autocast = args.mode == "autocast"
model = LlamaForCausalLM.from_pretrained(args.model, dtype=torch.float32 if autocast else torch.bfloat16,
                                         attn_implementation="sdpa").to(args.device)
model.config.use_cache = False
if args.adapter:
    from peft import PeftModel

    model = PeftModel.from_pretrained(model, args.adapter, is_trainable=True)
model.train()
parameters = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=0.0)
forward = torch.compile(model) if args.mode == "compile" else model

rows = [json.loads(line)["input_ids"] for line in open(args.rows)]
length = args.pad_to or max(map(len, rows))
batch = {"input_ids": torch.zeros(len(rows), length, dtype=torch.long), "labels": torch.full((len(rows), length), -100)}
for i, row in enumerate(rows):
    batch["input_ids"][i, : len(row)] = batch["labels"][i, : len(row)] = torch.tensor(row)
if args.pad_to:
    batch["attention_mask"] = (batch["labels"] != -100).long()
batch = {name: tensor.to(args.device) for name, tensor in batch.items()}


def loss_of_rows():
    with torch.autocast(args.device.split(":")[0], torch.bfloat16) if autocast else contextlib.nullcontext():
        return forward(**batch).loss


def step():
    wall, cpu = time.perf_counter(), time.process_time()
    loss = loss_of_rows()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu, float(loss.detach())


def answer(**values):
    with open("/proc/self/status") as status:  # getrusage also counts what the parent had
        of_process = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    values["peak_memory_bytes"] = torch.cuda.max_memory_allocated() if on_gpu else of_process
    print(json.dumps(values), flush=True)


def gradients(path):
    loss = loss_of_rows()
    loss.backward()
    save_file({n.replace(".default", ""): p.grad.cpu().clone() for n, p in model.named_parameters()
               if p.grad is not None and "ranknum" not in n}, path)  # AdaLoRA trains no scale
    optimizer.zero_grad(set_to_none=True)
    answer(loss=float(loss.detach()))


def generate(count):
    model.config.use_cache = True
    prompt = batch["input_ids"][:1, :16]
    wall, cpu = time.perf_counter(), time.process_time()
    with torch.no_grad():
        ids = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count,
                             min_new_tokens=count, do_sample=False, pad_token_id=0)
    answer(wall=time.perf_counter() - wall, cpu=time.process_time() - cpu, tokens=ids[0, 16:].tolist())


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
    elif words[0] == "generate":
        generate(int(words[1]))
    else:
        break
