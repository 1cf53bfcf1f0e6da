#!/usr/bin/env python3
"""Compares a base in few bits with a plain one, both ours, step by step in turn.

usage: quantized.py --ours build/release/bin/bench_lora_step --inputs DIR [--types nf4 int8] [--threads 1 2] [--rounds 9]
                    [--adapter adapter] [--rows rows.jsonl]

Prints a line per type and number of threads, see compare_steps in side.py.
"""
import argparse
import pathlib

from side import Side, compare_steps


def compare(quantized, args, threads):
    shared = [args.ours, "--lr", "1e-12", "--model", str(args.inputs / "model"), "--rows", str(args.inputs / args.rows),
              "--threads", str(threads), "--adapter", str(args.inputs / args.adapter)]
    sides = [Side("plain", shared, threads), Side(quantized, [*shared, "--quantize", quantized], threads)]
    print(f"{quantized:<5} {compare_steps(sides, threads, args.rounds)}", flush=True)


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
