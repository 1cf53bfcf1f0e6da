#!/usr/bin/env python3
"""Compares our training step with transformers + peft, interleaved, in one run.

usage: compare.py --ours PROGRAM --inputs DIR [--threads 1] [--rounds 9] [--out FILE.json]

Both programs are started from nothing (which gives the time from process start to the end of the first step), asked for
the gradients of the same rows, then in turn for a step each. Nothing is reported when the gradients disagree: a cosine
under 0.999 for any tensor, or a loss off by more than 1e-3.
"""
import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from safetensors.torch import load_file


class Side:
    """One program behind its pipe."""

    def __init__(self, name, command):
        self.name = name
        self.command = command
        environment = dict(os.environ, BENCH_STARTED=repr(time.time()))
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self.wall, self.cpu = [], []
        self.first_step_seconds = self.ask("step 1")["first_step_seconds"]

    def ask(self, request):
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended: {' '.join(self.command)}")
        answer = json.loads(line)
        self.peak_memory_bytes = answer["peak_memory_bytes"]
        return answer

    def step(self):
        answer = self.ask("step 1")
        self.wall += answer["wall"]
        self.cpu += answer["cpu"]

    def close(self):
        self.process.stdin.write("quit\n")
        self.process.stdin.close()
        self.process.wait()


def check_gradients(ours, peer):
    """Exits when the two sides do not compute the same thing."""
    with tempfile.TemporaryDirectory() as folder:
        a, b = os.path.join(folder, "a"), os.path.join(folder, "b")
        loss_a, loss_b = ours.ask(f"grads {a}")["loss"], peer.ask(f"grads {b}")["loss"]
        mine, theirs = load_file(a), load_file(b)
    if set(mine) != set(theirs):
        sys.exit(f"gradients differ in name: {sorted(set(mine) ^ set(theirs))[:4]}")
    cosines = [torch.nn.functional.cosine_similarity(mine[n].flatten().float(), theirs[n].flatten().float(), dim=0).item()
               for n in mine]
    if min(cosines) < 0.999 or abs(loss_a - loss_b) > 1e-3:
        sys.exit(f"not reported: worst gradient cosine {min(cosines):.5f}, losses {loss_a:.5f} and {loss_b:.5f}")
    return min(cosines), loss_a, loss_b


def processor():
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--ours", required=True)
    parser.add_argument("--inputs", required=True, type=pathlib.Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()

    here = pathlib.Path(__file__).parent
    shared = ["--model", str(args.inputs / "model"), "--adapter", str(args.inputs / "adapter"),
              "--rows", str(args.inputs / "rows.jsonl"), "--threads", str(args.threads)]
    peer = Side("peft", [sys.executable, str(here / "peers/peft_step.py"), *shared])
    ours = Side("lora", [args.ours, *shared])
    # The trained state has moved by one equal step on both sides.
    cosine, loss_ours, loss_peer = check_gradients(ours, peer)
    for side in (ours, peer):
        side.step()
        side.wall.clear(), side.cpu.clear()
    for _ in range(args.rounds):
        ours.step()
        peer.step()

    clock = "cpu" if args.threads == 1 else "wall"
    mine, theirs = getattr(ours, clock), getattr(peer, clock)
    commit = subprocess.run(["git", "-C", str(here), "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    result = {
        "command": " ".join(sys.argv), "commit": commit, "machine": processor(), "cores": os.cpu_count(),
        "load": os.getloadavg()[0], "threads": args.threads, "clock": clock, "rounds": args.rounds,
        "worst_gradient_cosine": cosine, "loss": {"lora": loss_ours, "peft": loss_peer},
        "step_seconds": {"lora": mine, "peft": theirs},
        "ratio_median": statistics.median(theirs) / statistics.median(mine),
        "ratio_best": min(theirs) / min(mine),
        "ratio_pairs_median": statistics.median(t / m for t, m in zip(theirs, mine)),
        "peak_memory_bytes": {"lora": ours.peak_memory_bytes, "peft": peer.peak_memory_bytes},
        "ratio_memory": ours.peak_memory_bytes / peer.peak_memory_bytes,
        "first_step_seconds": {"lora": ours.first_step_seconds, "peft": peer.first_step_seconds},
        "ratio_first_step": ours.first_step_seconds / peer.first_step_seconds,
    }
    ours.close()
    peer.close()
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"threads {args.threads}, {clock} seconds per step: lora {statistics.median(mine):.3f} (best {min(mine):.3f}), "
          f"peft {statistics.median(theirs):.3f} (best {min(theirs):.3f})")
    print(f"peft / lora: medians {result['ratio_median']:.2f}, best {result['ratio_best']:.2f}, "
          f"pairs {result['ratio_pairs_median']:.2f}; worst gradient cosine {cosine:.5f}")
    print(f"lora / peft: peak memory {result['ratio_memory']:.2f}, start to first step {result['ratio_first_step']:.2f} "
          f"({ours.first_step_seconds:.2f} s against {peer.first_step_seconds:.2f} s)")


if __name__ == "__main__":
    main()
