#!/usr/bin/env python3
"""Compares training steps of a ChatGLM with those of a Llama of the same size, both ours, in turn.

usage: models.py --ours build/release/bin/bench_lora_step --inputs DIR [--threads 1 2] [--rounds 9]

Prints a line per number of threads, see compare_steps in side.py.
"""
import argparse
import pathlib

from side import Side, compare_steps


def compare(args, threads):
    def side(name, model, adapter, rows):
        return Side(name, [args.ours, "--lr", "1e-12", "--model", str(args.inputs / model), "--adapter", str(args.inputs / adapter),
                           "--rows", str(args.inputs / rows), "--threads", str(threads)], threads)

    sides = [side("llama", "model", "adapter", "rows.jsonl"), side("glm", "glm_model", "glm_adapter", "glm_rows.jsonl")]
    print(compare_steps(sides, threads, args.rounds), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True)
    parser.add_argument("--inputs", required=True, type=pathlib.Path)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    for threads in args.threads:
        compare(args, threads)


if __name__ == "__main__":
    main()
