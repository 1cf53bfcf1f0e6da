#!/usr/bin/env python3
"""Measures the way of the data: rows to tensors, and what steps wait for a slow source.

usage: data_path.py CASE... --ours PROGRAM --inputs DIR [--rounds 9] [--out DIR]

  data          20,000 ADGEN-like rows (quickstart/make_data.py) as packed tensors, in rows per CPU second of one thread:
                tokenised, from the cache, and the same rows by json, sentencepiece and torch in Python
  slow_source   seconds that a step waits for a source of 0.3 s per batch, with 0, 1 and `auto` workers (about a minute)

Prints a line or more per case and writes DIR/CASE.json.
"""
import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
TOKENIZER = HERE / "../quickstart/base/tokenizer.model"


def output_of(*command):
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True,
                            env=dict(os.environ, OMP_NUM_THREADS="1"))
    if result.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed: {result.stderr}")
    return result.stdout


def processor():
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def measure_data(args):
    file = args.inputs / "adgen_rows/train.jsonl"
    if not file.exists():
        output_of(sys.executable, HERE / "../quickstart/make_data.py", "rows", "--output", file.parent, "--train", 20000,
                  "--dev", 1)
    ours = json.loads(output_of(args.ours, "rows", "--file", file, "--tokenizer", TOKENIZER, "--cache-dir",
                                args.inputs / "adgen_rows/cache", "--rounds", args.rounds))
    peer = json.loads(output_of(sys.executable, HERE / "peers/data_rows.py", file, TOKENIZER, "--rounds", args.rounds))
    if (ours["rows"], round(ours["tokens_per_row"], 1)) != (peer["rows"], round(peer["tokens_per_row"], 1)):
        sys.exit(f"not reported: {ours['rows']} rows of {ours['tokens_per_row']} tokens against {peer['rows']} of "
                 f"{peer['tokens_per_row']}")
    tokenised, cached = ours["tokenised"]["median"], ours["cached"]["median"]
    print(f"{'data':<23} rows/s of one thread: tokenised {tokenised:,}, from the cache {cached:,}, Python {peer['median']:,}; "
          f"ratio {tokenised / peer['median']:.2f}", flush=True)
    return {"lora": ours, "python": peer, "ratio_median": tokenised / peer["median"]}


def measure_slow_source(args):
    runs = []
    with subprocess.Popen([args.ours, "slow_source"], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            run = json.loads(line)
            runs.append(run)
            print(f"{'slow_source':<23} step {run['step_seconds']} s, workers {run['workers']:>4} (at the end "
                  f"{run['workers_at_end']}), {run['steps']} steps: waits {run['wait_seconds']:.4f} s a step, "
                  f"{run['wait_seconds_second_half']:.4f} s in the second half; the last to wait 0.01 s is step "
                  f"{run['last_waiting_step']}", flush=True)
    if process.returncode != 0:
        sys.exit(f"{args.ours} slow_source failed")
    return {"runs": runs}


CASES = {"data": measure_data, "slow_source": measure_slow_source}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", choices=CASES)
    parser.add_argument("--ours", required=True)
    parser.add_argument("--inputs", required=True, type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    commit = subprocess.run(["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"], capture_output=True,
                            text=True).stdout.strip()
    for name in args.cases:
        result = {"case": name, "command": " ".join(sys.argv), "commit": commit, "machine": processor(),
                  "cores": os.cpu_count(), "load": os.getloadavg()[0], **CASES[name](args)}
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            (args.out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
