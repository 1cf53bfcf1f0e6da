#!/usr/bin/env python3
"""Writes the data of the quickstart; the same arguments give the same files, byte for byte.

  make_data.py text --output pretrain.jsonl [--megabytes 30]   general text, one {"text": ...} per line
  make_data.py rows --output DIR [--train 4000] [--dev 200]    DIR/train.jsonl and DIR/dev.jsonl, ADGEN rows
  make_data.py openings --output FILE [--megabytes 8]          the same kind of text as openings to be gone on with, for the small ChatGLM
"""

import argparse
import json
import pathlib
import random

from ads import write_rows
from goods import Chooser
from prose import write_documents


def write_jsonl(path, objects):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for item in objects:
            file.write(json.dumps(item, ensure_ascii=False) + "\n")
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def make_text(arguments):
    choose = Chooser(random.Random(arguments.seed))
    write_jsonl(arguments.output, write_documents(choose, arguments.megabytes * 1_000_000))


def make_rows(arguments):
    choose = Chooser(random.Random(arguments.seed + 1))
    taken = set()
    dev = write_rows(choose, arguments.dev, taken)
    train = write_rows(choose, arguments.train, taken)
    assert not {row["content"] for row in train} & {row["content"] for row in dev}
    write_jsonl(arguments.output / "train.jsonl", train)
    write_jsonl(arguments.output / "dev.jsonl", dev)


def split(text):
    """A document's opening, to the end of a sentence, and how it goes on."""
    end = text.find("。", len(text) // 4) + 1
    return text[:end], text[end:]


def make_openings(arguments):
    choose = Chooser(random.Random(arguments.seed + 2))
    rows = (split(document["text"]) for document in write_documents(choose, arguments.megabytes * 1_000_000))
    write_jsonl(arguments.output, ({"prompt": opening, "completion": rest} for opening, rest in rows if opening and rest))


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    text = commands.add_parser("text")
    text.add_argument("--megabytes", type=int, default=30)
    text.set_defaults(run=make_text)
    rows = commands.add_parser("rows")
    rows.add_argument("--train", type=int, default=4000)
    rows.add_argument("--dev", type=int, default=200)
    rows.set_defaults(run=make_rows)
    openings = commands.add_parser("openings")
    openings.add_argument("--megabytes", type=int, default=8)
    openings.set_defaults(run=make_openings)
    for command in (text, rows, openings):
        command.add_argument("--output", type=pathlib.Path, required=True)
        command.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    chosen = parse_arguments()
    chosen.run(chosen)
