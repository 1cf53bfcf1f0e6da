#!/usr/bin/env python3
"""Compares us with transformers + peft, interleaved, in one run.

usage: compare.py CASE... --ours PROGRAM --inputs DIR [--rounds 9] [--out DIR]

Both programs of a case are started from nothing (which gives the time from process start to the end of the first step),
asked for the gradients of the same rows, then in turn for a step each. Nothing is reported when the gradients disagree:
a cosine under 0.999 for any tensor, or a loss off by more than 1e-3. Prints one line per case and writes DIR/CASE.json.
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

import torch
from safetensors.torch import load_file

from side import Side

# What each case runs: threads, adapter and rows (names in the folder of inputs), options of either side.
CASES = {
    "eager_1_thread": {},
    "eager_2_threads": {"threads": 2},
    "compile_1_thread": {"peer": ["--mode", "compile"]},
    "compile_2_threads": {"threads": 2, "peer": ["--mode", "compile"]},
    "autocast_1_thread": {"peer": ["--mode", "autocast"]},
    "all_linear_1_thread": {"adapter": "adapter_all_linear"},
    "all_linear_2_threads": {"adapter": "adapter_all_linear", "threads": 2},
    "adgen_packed_1_thread": {"rows": "rows_adgen.jsonl", "ours": ["--packed"], "peer": ["--pad-to", "128"]},
    "adgen_packed_2_threads": {"rows": "rows_adgen.jsonl", "ours": ["--packed"], "peer": ["--pad-to", "128"], "threads": 2},
    # PEFT's own DoRA and AdaLoRA, both sides without the allocation of ranks.
    "dora_1_thread": {"adapter": "adapter_dora"},
    "dora_2_threads": {"adapter": "adapter_dora", "threads": 2},
    "adalora_1_thread": {"adapter": "adapter_adalora"},
    "adalora_2_threads": {"adapter": "adapter_adalora", "threads": 2},
    "full_1_thread": {"adapter": None},
    "full_2_threads": {"adapter": None, "threads": 2},
    # One token a pass on both sides; with lookup ours guesses tokens from the text so far, which pays as it repeats itself.
    "decode_1_thread": {"adapter": None, "generate": 64},
    "decode_2_threads": {"adapter": None, "generate": 64, "threads": 2},
    "decode_lookup_1_thread": {"adapter": None, "generate": 64, "ours": ["--prompt-lookup-num-tokens", "3"]},
    "decode_lookup_2_threads": {"adapter": None, "generate": 64, "threads": 2, "ours": ["--prompt-lookup-num-tokens", "3"]},
    # On a GPU, with the inputs of make_inputs.py --size 7b: see h200.sh.
    "h200_eager": {"gpu": True, "adapter": "adapter_all_linear", "ours": ["--packed"]},
    "h200_compile": {"gpu": True, "adapter": "adapter_all_linear", "ours": ["--packed"], "peer": ["--mode", "compile"]},
}


def check_gradients(ours, peer):
    """Exits when the two sides do not compute the same thing."""
    with tempfile.TemporaryDirectory() as folder:
        a, b = os.path.join(folder, "a"), os.path.join(folder, "b")
        loss_a, loss_b = ours.ask(f"grads {a}")["loss"], peer.ask(f"grads {b}")["loss"]
        mine, theirs = load_file(a), load_file(b)
    if set(mine) != set(theirs):
        sys.exit(f"gradients differ in name: {sorted(set(mine) ^ set(theirs))[:4]}")
    cosines = [torch.nn.functional.cosine_similarity(mine[n].flatten().double(), theirs[n].flatten().double(), dim=0).item()
               for n in mine]
    if min(cosines) < 0.999 or abs(loss_a - loss_b) > 1e-3:
        worst = min(zip(cosines, mine))
        sys.exit(f"not reported: worst gradient cosine {worst[0]:.5f} ({worst[1]}), losses {loss_a:.5f} and {loss_b:.5f}")
    return min(cosines), loss_a, loss_b


def processor(case):
    if case.get("gpu"):
        return torch.cuda.get_device_name()
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def start(case, args):
    """Both sides of a case, each after its first step."""
    threads, adapter = case.get("threads", 1), case.get("adapter", "adapter")
    # So small a rate that both sides' gradients stay those of the same weights, however many steps they have done.
    shared = ["--lr", "1e-12", "--model", str(args.inputs / "model"), "--rows", str(args.inputs / case.get("rows", "rows.jsonl")),
              "--threads", str(threads), "--device", "cuda:0" if case.get("gpu") else "cpu"]
    if adapter:
        shared += ["--adapter", str(args.inputs / adapter)]
    script = pathlib.Path(__file__).parent / "peers/peft_step.py"
    peer = Side("peft", [sys.executable, str(script), *shared, *case.get("peer", [])], threads)
    if "generate" not in case:
        peer.first_step()
    ours = Side("lora", [args.ours, *shared, *case.get("ours", [])], threads)
    if "generate" not in case:
        ours.first_step()
    return ours, peer


def run_steps(ours, peer, rounds):
    cosine, loss_ours, loss_peer = check_gradients(ours, peer)
    for side in (ours, peer):
        side.measure("step 1")
        side.forget()
    memory = {side.name: side.peak_memory_bytes for side in (ours, peer)}  # the products alone need weights of their own
    products = []
    for _ in range(rounds):
        ours.measure("step 1")
        products.append(ours.ask("products 1"))
        peer.measure("step 1")
    return {
        "peak_memory_bytes": memory, "worst_gradient_cosine": cosine, "loss": {"lora": loss_ours, "peft": loss_peer},
        "own_products": products,
        "first_step_seconds": {"lora": ours.first_step_seconds, "peft": peer.first_step_seconds},
        "ratio_first_step": ours.first_step_seconds / peer.first_step_seconds,
    }


def run_decoding(ours, peer, rounds, count):
    request = f"generate {count}"
    a, b = ours.measure(request)["tokens"], peer.measure(request)["tokens"]
    same = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), count)
    for side in (ours, peer):
        side.forget()
    for _ in range(rounds):
        ours.measure(request)
        peer.measure(request)
    return {"tokens": count, "equal_first_tokens": same}


def run_case(name, args):
    case = CASES[name]
    threads = case.get("threads", 1)
    ours, peer = start(case, args)
    if "generate" in case:
        found = run_decoding(ours, peer, args.rounds, case["generate"])
    else:
        found = run_steps(ours, peer, args.rounds)
    clock = "cpu" if threads == 1 and not case.get("gpu") else "wall"
    mine, theirs = getattr(ours, clock), getattr(peer, clock)
    here = pathlib.Path(__file__).parent
    commit = subprocess.run(["git", "-C", str(here), "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    result = {
        "case": name, "command": " ".join(sys.argv), "commit": commit, "machine": processor(case), "cores": os.cpu_count(),
        "load": os.getloadavg()[0], "threads": threads, "clock": clock, "rounds": args.rounds, **found,
        "seconds": {"lora": mine, "peft": theirs},
        "ratio_median": statistics.median(theirs) / statistics.median(mine),
        "ratio_best": min(theirs) / min(mine),
        "ratio_pairs_median": statistics.median(t / m for t, m in zip(theirs, mine)),
    }
    memory = result.setdefault("peak_memory_bytes", {side.name: side.peak_memory_bytes for side in (ours, peer)})
    if case.get("gpu"):
        rows = [json.loads(line)["input_ids"] for line in open(args.inputs / case.get("rows", "rows.jsonl"))]
        tokens = sum(map(len, rows))
        result["tokens_per_second"] = {"lora": tokens / statistics.median(mine), "peft": tokens / statistics.median(theirs)}
    result["ratio_memory"] = memory["lora"] / memory["peft"]
    if "own_products" in result:
        share = [p[clock] / m for p, m in zip(result["own_products"], mine)]
        result["share_of_products"] = statistics.median(share)
    ours.close()
    peer.close()
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    line = (f"{name:<23} lora {statistics.median(mine):.3f} s, peft {statistics.median(theirs):.3f} s ({clock}); "
            f"medians {result['ratio_median']:.2f}, best {result['ratio_best']:.2f}, pairs {result['ratio_pairs_median']:.2f}; "
            f"memory {result['ratio_memory']:.2f}")
    if "ratio_first_step" in result:
        line += (f"; first step {result['ratio_first_step']:.2f}; products {result['share_of_products']:.2f}; "
                 f"cosine {result['worst_gradient_cosine']:.5f}")
    else:
        line += f"; first {result['equal_first_tokens']} of {result['tokens']} tokens equal"
    if "tokens_per_second" in result:
        line += (f"; tokens/s {result['tokens_per_second']['lora']:.0f} and {result['tokens_per_second']['peft']:.0f}, "
                 f"memory {memory['lora'] / 1e9:.1f} and {memory['peft'] / 1e9:.1f} GB")
    print(line, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", choices=[*CASES, "all"])
    parser.add_argument("--ours", required=True)
    parser.add_argument("--inputs", required=True, type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    for name in [n for n in CASES if not CASES[n].get("gpu")] if "all" in args.cases else args.cases:
        run_case(name, args)


if __name__ == "__main__":
    main()
