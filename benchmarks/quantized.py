#!/usr/bin/env python3
"""Compares a base in few bits with a plain one, both ours, step by step in turn.

usage: quantized.py --ours build/release/bin/bench_lora_step --inputs DIR [--types nf4 int8] [--threads 1 2] [--rounds 9]
                    [--adapter adapter] [--rows rows.jsonl]

Prints a line per type and number of threads: median seconds of a step, the share of the plain base's speed that is kept
(medians, and the median of pairs), and either side's largest resident set. CPU seconds with one thread, else wall-clock ones.
"""
import argparse
import pathlib
import statistics

from side import Side


def compare(quantized, args, threads):
    shared = [args.ours, "--lr", "1e-12", "--model", str(args.inputs / "model"), "--rows", str(args.inputs / args.rows),
              "--threads", str(threads), "--adapter", str(args.inputs / args.adapter)]
    sides = [Side("plain", shared, threads), Side(quantized, [*shared, "--quantize", quantized], threads)]
    for side in sides:
        side.first_step()
        side.measure("step 1")
        side.forget()
    for _ in range(args.rounds):
        for side in sides:
            side.measure("step 1")
    clock = "cpu" if threads == 1 else "wall"
    plain, few = (getattr(side, clock) for side in sides)
    pairs = statistics.median(p / f for p, f in zip(plain, few))
    for side in sides:
        side.close()
    print(f"{quantized:<5} {threads} thread(s): plain {statistics.median(plain):.3f} s, {quantized} {statistics.median(few):.3f} s ({clock}); "
          f"speed kept {statistics.median(plain) / statistics.median(few):.2f}, pairs {pairs:.2f}; memory "
          f"{sides[0].peak_memory_bytes / 2**20:.0f} and {sides[1].peak_memory_bytes / 2**20:.0f} MiB", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True)
    parser.add_argument("--inputs", required=True, type=pathlib.Path)
    parser.add_argument("--types", nargs="+", default=["nf4"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--adapter", default="adapter")
    parser.add_argument("--rows", default="rows.jsonl")
    args = parser.parse_args()
    for quantized in args.types:
        for threads in args.threads:
            compare(quantized, args, threads)


if __name__ == "__main__":
    main()
