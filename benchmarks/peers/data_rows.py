#!/usr/bin/env python3
"""The peer's way from ADGEN rows to padded tensors: json, sentencepiece in C++ for whole batches, torch.

usage: data_rows.py FILE TOKENIZER [--rounds 5] [--batch 32]
"""
import argparse
import json
import time

import sentencepiece
import torch

parser = argparse.ArgumentParser()
parser.add_argument("file")
parser.add_argument("tokenizer")
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--batch", type=int, default=32)
args = parser.parse_args()
torch.set_num_threads(1)
tokenizer = sentencepiece.SentencePieceProcessor(model_file=args.tokenizer)


def tensors_of(rows):
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows])
    return ids, labels


def one_round():
    tokens = rows = 0
    pending = []
    with open(args.file, encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    for begin in range(0, len(records), args.batch):
        chosen = records[begin:begin + args.batch]
        prompts = tokenizer.encode([r["content"] for r in chosen], num_threads=1)
        answers = tokenizer.encode([r["summary"] for r in chosen], num_threads=1)
        for prompt, answer in zip(prompts, answers):
            prompt, answer = [1] + prompt, answer + [2]
            pending.append((prompt + answer, [-100] * len(prompt) + answer))
            tokens += len(prompt) + len(answer)
        ids, _ = tensors_of(pending)
        rows += len(ids)
        pending.clear()
    return rows, tokens


rates = []
for _ in range(args.rounds):
    before = time.process_time()
    rows, tokens = one_round()
    rates.append(rows / (time.process_time() - before))
print(json.dumps({"rows": rows, "tokens_per_row": tokens / rows, "rows_per_second": [round(r) for r in rates],
                  "median": round(sorted(rates)[len(rates) // 2])}))
