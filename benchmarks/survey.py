#!/usr/bin/env python3
"""Tunes the quick start's model fully and by every method, and says what each costs and brings.

usage: survey.py --lora build/release/bin/lora --bench build/release/bin/bench_lora_step --output DIR
                 [--methods lora dora ...] [--steps 500] [--rounds 41] [--threads 2]

The runs are those of configs/train_full.yaml and configs/methods/*.yaml, of --steps steps each. Writes DIR/survey.md, one line per
method, and DIR/survey.json with command, commit and machine:

- trained: trainable parameters, and their share of the model's
- held out: loss per token of the answers in quickstart/data/dev.jsonl
- general text: loss per token of text like that which the base model learned from, none of which is an advertisement; what it
  has risen by is what the model forgot
- tokens/s: of training, the median of the steps after the first ten
- memory: the run's largest resident set
- decoding: tokens per CPU second of one thread with the adapter and, where a weight can hold it, after `lora merge`, as shares of
  the base model's, decoded in turn
"""
import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys

from side import Side

ROOT = pathlib.Path(__file__).resolve().parent.parent
QUICKSTART = ROOT / "quickstart"
BASE = QUICKSTART / "base"

# Name of the row: the run file, and what is set over it.
CASES = {
    "full": ("configs/train_full.yaml", []),
    "LoRA": ("configs/methods/lora.yaml", []),
    "rsLoRA": ("configs/methods/rslora.yaml", []),
    "LoRA+": ("configs/methods/loraplus.yaml", []),
    "DoRA": ("configs/methods/dora.yaml", []),
    "PiSSA": ("configs/methods/pissa.yaml", []),
    "OLoRA": ("configs/methods/olora.yaml", []),
    "EVA": ("configs/methods/eva.yaml", []),
    "AdaLoRA": ("configs/methods/adalora.yaml", []),
    "QLoRA": ("configs/methods/qlora.yaml", []),
    "LoftQ": ("configs/methods/loftq.yaml", []),
    "(IA)³": ("configs/methods/ia3.yaml", []),
    "prefix": ("configs/methods/prefix.yaml", []),
    "prompt": ("configs/methods/prompt.yaml", []),
    "P-tuning": ("configs/methods/ptuning.yaml", []),
    "P-tuning v2": ("configs/methods/ptuning_v2.yaml", []),
    "Houlsby": ("configs/methods/bottleneck.yaml", []),
    "Pfeiffer": ("configs/methods/bottleneck.yaml", ["adapter.preset=pfeiffer"]),
    "parallel": ("configs/methods/bottleneck.yaml", ["adapter.preset=parallel"]),
}
NEVER_MERGES = {"full", "prefix", "prompt", "P-tuning", "P-tuning v2", "Houlsby", "Pfeiffer", "parallel"}

WARM_UP_STEPS = 10
NEW_TOKENS = 128


def run(command):
    """Runs a command to its end and returns its output and its largest resident set in bytes."""
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    output, errors = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{errors}")
    return output, usage.ru_maxrss * 1024


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def held_out_rows(path):
    rows = [json.loads(line) for line in open(QUICKSTART / "data/dev.jsonl", encoding="utf-8")]
    return write_rows(path, [{"prompt": row["content"], "completion": row["summary"]} for row in rows])


def general_rows(path, folder, limit=200):
    """Text by the generator of the base model's own, with another seed."""
    text = folder / "general_text.jsonl"
    run([sys.executable, QUICKSTART / "make_data.py", "text", "--output", text, "--megabytes", 1, "--seed", 12345])
    rows = [json.loads(line) for line in open(text, encoding="utf-8")]
    return write_rows(path, rows[:limit])


class Survey:
    def __init__(self, args):
        self.args, self.folder = args, args.output
        self.folder.mkdir(parents=True, exist_ok=True)
        self.held_out = held_out_rows(self.folder / "held_out.jsonl")
        self.general = general_rows(self.folder / "general.jsonl", self.folder)
        self.tokens = write_rows(self.folder / "tokens.jsonl", [{"input_ids": list(range(100, 132))}])

    def tuned(self, name, file, settings):
        """Runs the training; what it trained, how fast and in how much memory."""
        directory = self.folder / name.replace(" ", "_")
        words = ["-c", ROOT / file]
        steps = self.args.steps
        for setting in [f"run.output_dir={directory}", f"run.threads={self.args.threads}", f"train.max_steps={steps}", "log.samples=0",
                        "data.eval.path=null", *settings]:
            words += ["--set", setting]
        if name == "AdaLoRA":
            words += ["--set", f"adapter.tinit={steps // 10}", "--set", f"adapter.tfinal={steps * 3 // 10}"]
        command = "train" if name == "full" else "finetune"
        plan = json.loads(run([self.args.lora, "plan", *words, "--json"])[0])
        _, memory = run([self.args.lora, command, *words, "--set", "run.resume=none", "--overwrite", "-q"])
        lines = [json.loads(line) for line in open(directory / "metrics.jsonl")]
        speeds = [line["tokens_per_second"] for line in lines[WARM_UP_STEPS:]] or [lines[-1]["tokens_per_second"]]
        return directory, {"memory_bytes": memory, "tokens_per_second": statistics.median(speeds), "parameters": plan["parameters"],
                           "trainable": plan["trainable_parameters"]}

    def loss(self, rows, model, adapter=None):
        """Mean negative log-probability of the targets."""
        output = self.folder / "scores.jsonl"
        words = ["--adapter", adapter] if adapter else []
        run([self.args.lora, "score", "--model", model, *words, "--input", rows, "--output", output, "--dtype", "fp32", "--batch-size", 16,
             "--overwrite", "-q"])
        scores = [json.loads(line) for line in open(output)]
        return -sum(score["sum_logprob"] for score in scores) / sum(score["num_targets"] for score in scores)

    def decoding(self, model, adapter=None):
        words = [str(self.args.bench), "--model", str(model), "--rows", str(self.tokens), "--dtype", "fp32", "--threads", "1"]
        return Side("decoding", words + (["--adapter", str(adapter)] if adapter else []), 1)

    def decoding_shares(self, sides):
        """Speeds of decoding as shares of the first side's: the medians of pairs."""
        for _ in range(self.args.rounds + 1):
            for side in sides:
                answer = side.measure(f"generate {NEW_TOKENS}")
                side.seconds_per_token = getattr(side, "seconds_per_token", []) + [answer["cpu"] / len(answer["tokens"])]
        for side in sides:
            side.close()
        base = sides[0].seconds_per_token[1:]
        return [statistics.median(b / s for b, s in zip(base, side.seconds_per_token[1:])) for side in sides]

    def row(self, name):
        file, settings = CASES[name]
        directory, found = self.tuned(name, file, settings)
        model, adapter = (directory / "model", None) if name == "full" else (BASE, directory / "adapter")
        found["held_out"], found["general"] = self.loss(self.held_out, model, adapter), self.loss(self.general, model, adapter)
        sides = [self.decoding(BASE), self.decoding(model, adapter)]
        if name not in NEVER_MERGES:
            run([self.args.lora, "merge", "--model", BASE, "--adapter", adapter, "--output", directory / "merged", "--overwrite", "-q"])
            sides.append(self.decoding(directory / "merged"))
        shares = self.decoding_shares(sides)
        found["decoding"], found["decoding_merged"] = shares[1], shares[2] if len(shares) > 2 else None
        return found

    def base_row(self):
        return {"held_out": self.loss(self.held_out, BASE), "general": self.loss(self.general, BASE)}


def table(rows):
    base = rows["base model"]
    lines = ["| method | trained | held-out loss | general text (risen by) | tokens/s | memory, MiB | decoding, tuned / merged |",
             "|---|---|---|---|---|---|---|",
             f"| base model |  | {base['held_out']:.3f} | {base['general']:.3f} |  |  | 1 |"]
    for name, found in rows.items():
        if name == "base model":
            continue
        share = f"{found['trainable']:,} ({100 * found['trainable'] / found['parameters']:.2f} %)"
        merged = "no weight holds it" if found["decoding_merged"] is None else f"{found['decoding_merged']:.2f}"
        merged = "" if name == "full" else f" / {merged}"
        lines.append(f"| {name} | {share} | {found['held_out']:.3f} | {found['general']:.3f} "
                     f"({found['general'] - base['general']:+.3f}) | {found['tokens_per_second']:.0f} | {found['memory_bytes'] / 2**20:.0f} | "
                     f"{found['decoding']:.2f}{merged} |")
    return "\n".join(lines) + "\n"


def processor():
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lora", required=True, type=pathlib.Path)
    parser.add_argument("--bench", required=True, type=pathlib.Path)
    parser.add_argument("--output", required=True, type=pathlib.Path)
    parser.add_argument("--methods", nargs="+", choices=CASES, default=list(CASES), metavar="METHOD")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    args.lora, args.bench, args.output = (path.resolve() for path in (args.lora, args.bench, args.output))

    survey = Survey(args)
    rows = {"base model": survey.base_row()}
    for name in args.methods:
        rows[name] = survey.row(name)
        print(f"{name}: held out {rows[name]['held_out']:.3f}, general text {rows[name]['general']:.3f}", flush=True)
    (args.output / "survey.md").write_text(table(rows))
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    about = {"command": " ".join(sys.argv), "commit": commit, "machine": processor(), "cores": os.cpu_count(), "load": os.getloadavg()[0],
             "steps": args.steps, "rows": rows}
    (args.output / "survey.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    print(table(rows), end="")


if __name__ == "__main__":
    main()
