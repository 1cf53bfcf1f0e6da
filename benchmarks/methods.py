#!/usr/bin/env python3
"""Compares the steps of methods with those of plain LoRA, all of them ours, in turn.

usage: methods.py --ours build/release/bin/bench_lora_step --inputs DIR [--methods dora adalora] [--threads 1 2] [--rounds 9]

Prints a line per method and number of threads, see compare_steps in side.py.
"""
import argparse
import pathlib

from side import Side, compare_steps


def compare(method, args, threads):
    shared = [args.ours, "--lr", "1e-12", "--model", str(args.inputs / "model"), "--rows", str(args.inputs / "rows.jsonl"),
              "--threads", str(threads), "--adapter"]
    sides = [Side("lora", [*shared, str(args.inputs / "adapter")], threads),
             Side(method, [*shared, str(args.inputs / f"adapter_{method}")], threads)]
    print(f"{method:<8} {compare_steps(sides, threads, args.rounds)}", flush=True)


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
