#!/usr/bin/env python3
"""Compares training steps of a ChatGLM with those of a Llama of the same size, both ours, in turn.

usage: models.py --ours build/release/bin/bench_lora_step --inputs DIR [--threads 1 2] [--rounds 9]

Prints a line per number of threads: median seconds of a step over as many tokens, and the share of the Llama's speed that the ChatGLM
has (medians, and the median of pairs). CPU seconds with one thread, else wall-clock ones.
"""
import argparse
import pathlib
import statistics

from side import Side


def compare(args, threads):
    def side(name, model, adapter, rows):
        return Side(name, [args.ours, "--lr", "1e-12", "--model", str(args.inputs / model), "--adapter", str(args.inputs / adapter),
                           "--rows", str(args.inputs / rows), "--threads", str(threads)], threads)

    sides = [side("llama", "model", "adapter", "rows.jsonl"), side("glm", "glm_model", "glm_adapter", "glm_rows.jsonl")]
    for one in sides:
        one.first_step()
        one.measure("step 1")
        one.forget()
    for _ in range(args.rounds):
        for one in sides:
            one.measure("step 1")
    clock = "cpu" if threads == 1 else "wall"
    llama, glm = (getattr(one, clock) for one in sides)
    pairs = statistics.median(a / b for a, b in zip(llama, glm))
    for one in sides:
        one.close()
    print(f"{threads} thread(s): Llama {statistics.median(llama):.3f} s, ChatGLM {statistics.median(glm):.3f} s ({clock}); "
          f"speed {statistics.median(llama) / statistics.median(glm):.2f}, pairs {pairs:.2f}; memory "
          f"{sides[0].peak_memory_bytes / 2**20:.0f} and {sides[1].peak_memory_bytes / 2**20:.0f} MiB", flush=True)


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
