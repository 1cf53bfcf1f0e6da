#!/usr/bin/env python3
"""Compares the steps of methods with those of plain LoRA, all of them ours, in turn.

usage: methods.py --ours build/release/bin/bench_lora_step --inputs DIR [--methods dora adalora] [--threads 1 2] [--rounds 9]

Prints a line per method and number of threads: median seconds of a step, and the share of plain LoRA's tokens per second that is
kept (medians, and the median of pairs). CPU seconds with one thread, else wall-clock ones.
"""
import argparse
import pathlib
import statistics

from side import Side


def compare(method, args, threads):
    shared = [args.ours, "--lr", "1e-12", "--model", str(args.inputs / "model"), "--rows", str(args.inputs / "rows.jsonl"),
              "--threads", str(threads), "--adapter"]
    sides = [Side("lora", [*shared, str(args.inputs / "adapter")], threads),
             Side(method, [*shared, str(args.inputs / f"adapter_{method}")], threads)]
    for side in sides:
        side.first_step()
        side.measure("step 1")
        side.forget()
    for _ in range(args.rounds):
        for side in sides:
            side.measure("step 1")
    clock = "cpu" if threads == 1 else "wall"
    plain, other = (getattr(side, clock) for side in sides)
    pairs = statistics.median(p / o for p, o in zip(plain, other))
    for side in sides:
        side.close()
    print(f"{method:<8} {threads} thread(s): LoRA {statistics.median(plain):.3f} s, {method} {statistics.median(other):.3f} s ({clock}); "
          f"speed kept {statistics.median(plain) / statistics.median(other):.2f}, pairs {pairs:.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True)
    parser.add_argument("--inputs", required=True, type=pathlib.Path)
    parser.add_argument("--methods", nargs="+", default=["dora", "adalora"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    for method in args.methods:
        for threads in args.threads:
            compare(method, args, threads)


if __name__ == "__main__":
    main()
