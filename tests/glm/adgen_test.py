#!/usr/bin/env python3
"""Prepares AdvertiseGen rows for ChatGLM with lora and compares every token and label with the recipe written down here anew:
MindFormers' adgen_dataset.py, shifted labels and all, over the sentencepiece package. The record files are read here anew, too.

usage: pip install sentencepiece; python adgen_test.py PROGRAM SOURCE_DIR ROWS.json
"""
import json
import pathlib
import struct
import subprocess
import sys
import tempfile

import sentencepiece

PROGRAM, SOURCE, ROWS = (pathlib.Path(argument).resolve() for argument in sys.argv[1:4])
TOKENIZER = SOURCE / "tests/reference/glm_tokenizer/v2/ice_text.model"
PIECES = sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER))
GMASK, SOP, EOP, PAD = (PIECES.piece_to_id(piece) for piece in ("[gMASK]", "<sop>", "<eop>", "<pad>"))
NO = -100

RUN_FILE = """
run: {{output_dir: out, device: cpu}}
model: {{arch: llama, vocab_size: {vocab}, hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1, num_attention_heads: 1,
        max_position_embeddings: 512}}
tokenizer: {{path: {tokenizer}}}
adapter: {{method: none}}
data: {{format: adgen, train: {{path: {rows}}}, max_source_length: {source}, max_target_length: {target}, train_on_sop: {sop},
       ignore_pad_in_loss: {ignore}}}
"""


def encode(text):
    text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
    for n in range(80, 1, -1):
        text = text.replace(" " * n, f"<|blank_{n}|>")
    return PIECES.encode(text)


def recipe(row, source, target, ignore_pad):
    """Ids of length source + target, and shifted labels: labels[i] is what comes after ids[i]."""
    prompt, answer = encode(row["content"])[:source - 1], encode(row["summary"])[:target - 2]
    ids = prompt + [GMASK, SOP] + answer + [EOP]
    start = ids.index(SOP)
    labels = [NO] * start + ids[start + 1:]
    length = source + target
    ids += [PAD] * (length - len(ids))
    labels += [PAD] * (length - len(labels))
    return ids, [NO if ignore_pad and label == PAD else label for label in labels]


def read_records(directory):
    header = json.loads((directory / "records.json").read_text())["content"]
    for shard in range(len(header["shards"])):
        tokens = (directory / f"shard-{shard:05}.records").read_bytes()[64:]
        index = (directory / f"shard-{shard:05}.index").read_bytes()
        at = 64
        while at < len(index):
            (rows,) = struct.unpack_from("<I", index, at + 64)
            at += 96
            for _ in range(rows):
                number, length, _ = struct.unpack_from("<qII", index, at)
                yield number, struct.unpack(f"<{length}i", tokens[:4 * length])
                tokens = tokens[4 * length:]
                at += 16
        assert not tokens


def check(rows, source, target, sop, ignore_pad):
    with tempfile.TemporaryDirectory() as folder:
        run_file = pathlib.Path(folder) / "run.yaml"
        run_file.write_text(RUN_FILE.format(vocab=PIECES.get_piece_size(), tokenizer=TOKENIZER, rows=ROWS, source=source, target=target,
                                            sop=str(sop).lower(), ignore=str(ignore_pad).lower()))
        subprocess.run([PROGRAM, "prepare", "-c", run_file, "-q"], check=True)
        targets = 0
        for (number, tokens), row in zip(read_records(pathlib.Path(folder) / "out/records/train"), rows, strict=True):
            ids = [token & 0x7fffffff for token in tokens]
            labels = [NO if token < 0 else token for token in tokens]
            expected_ids, shifted = recipe(row, source, target, ignore_pad)
            assert ids == expected_ids[:len(ids)], number
            assert set(expected_ids[len(ids):]) <= {PAD}, number
            expected = [NO] + shifted[:-1]  # labels[i] belongs to ids[i]; what comes after the last id has no place
            if sop:
                expected[expected_ids.index(SOP)] = SOP
            assert labels == expected[:len(labels)], number
            assert set(expected[len(labels):]) <= {NO}, number
            targets += sum(label != NO for label in labels)
        print(f"{len(rows)} rows, {targets} targets equal: source {source}, target {target}, sop {sop}, ignore_pad {ignore_pad}")


def main():
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    for source, target in ((64, 64), (20, 30), (256, 256)):
        for sop in (False, True):
            for ignore_pad in (True, False):
                check(rows, source, target, sop, ignore_pad)


if __name__ == "__main__":
    main()
