#!/usr/bin/env python3
"""Makes tests/reference/glm_tokenizer: small SentencePiece models in both layouts of ChatGLM-6B's ice_text.model, and what
ChatGLM's rules give with them.

The pieces are trained on sentences of this file and of quickstart/data. v2/ holds the special, tab, blank and byte pieces at its
end, as the published file does; v1/ ends with its text pieces, and its reader adds the others and shifts all ids by 20000.
expected.json holds ids and texts by the rules written down below with the sentencepiece package (0.2), independent of lora.

usage: pip install sentencepiece protobuf; python make_glm_tokenizer.py
"""
import io
import json
import pathlib

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as protobuf

FOLDER = pathlib.Path(__file__).resolve().parent
TARGET = FOLDER / "glm_tokenizer"
SPECIAL = ["[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>"]
MOST_BLANKS = 80
SENTENCES = ["你好", "晚上睡不着应该怎么办", "def main():<n>", "print('hello world')", "# greeting", "[Round 0]<n>问：你好<n>答：你好！<n>",
             "The quick brown fox jumps over the lazy dog 0123456789", "return x + y * (a - b) / 2 ; \"quoted\" text"]


def corpus():
    lines = (FOLDER.parents[1] / "quickstart/data/train.jsonl").read_text(encoding="utf-8").splitlines()[:600]
    rows = [json.loads(line) for line in lines]
    return SENTENCES * 20 + [row[key] for row in rows for key in ("content", "summary")]


def text_pieces():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=model, model_type="unigram", vocab_size=1000, character_coverage=0.99,
        control_symbols=["<pad>"], user_defined_symbols=["<n>"], pad_id=-1, byte_fallback=False, normalization_rule_name="identity",
        remove_extra_whitespaces=False, num_threads=1, hard_vocab_limit=False, minloglevel=2)
    proto = protobuf.ModelProto()
    proto.ParseFromString(model.getvalue())
    return proto


def add_tail(proto):
    def add(piece, kind):
        proto.pieces.append(protobuf.ModelProto.SentencePiece(piece=piece, score=0.0, type=kind))

    for piece in SPECIAL:
        add(piece, 3)
    for piece in ["<|tab|>"] + [f"<|blank_{n}|>" for n in range(2, MOST_BLANKS + 1)]:
        add(piece, 4)
    for byte in range(256):
        add(f"<0x{byte:02X}>", 6)
    proto.trainer_spec.byte_fallback = True


class Rules:
    """ChatGLM's rules over a SentencePiece model whose ids are shifted."""

    def __init__(self, model, shift):
        self.pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.shift = shift

    def id(self, piece):
        return self.pieces.piece_to_id(piece) + self.shift

    def encode(self, text, dummy_prefix=True):
        text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
        for n in range(MOST_BLANKS, 1, -1):
            text = text.replace(" " * n, f"<|blank_{n}|>")
        ids = [id + self.shift for id in self.pieces.encode(text if dummy_prefix else "<n>" + text)]
        return ids if dummy_prefix else ids[2:]

    def decode(self, ids):
        kept = [id - self.shift for id in ids if id != self.id("<pad>") and id >= self.shift]
        text = self.pieces.decode([id for id in kept if not self.pieces.is_control(id)])
        text = text.replace("<n>", "\n").replace("<|tab|>", "\t")
        for n in range(2, MOST_BLANKS + 1):
            text = text.replace(f"<|blank_{n}|>", " " * n)
        return text


TEXTS = ["", "你好", "晚上睡不着应该怎么办", "def main():\n    print('hello world')\t# greeting", "👋", " a", "a  b   c", "\n\n\t\t",
         " " * 2, " " * 80, " " * 81, " " * 82, " " * 163, "x" + " " * 79 + "y", "literal <n> and <|blank_4|> here",
         "[gMASK] <sop> <eop> <pad>", "颜色#白色*风格#简约 ❤ 🚀", "[Round 0]\n问：你好\n答：你好！\n[Round 1]\n问：晚上睡不着应该怎么办\n答："]


def main():
    text_only = text_pieces()
    with_tail = protobuf.ModelProto()
    with_tail.CopyFrom(text_only)
    add_tail(with_tail)
    shared = {"bos_token": "<sop>", "eos_token": "<eop>", "gmask_token": "[gMASK]", "mask_token": "[MASK]", "pad_token": "<pad>",
              "unk_token": "<unk>", "remove_space": False, "do_lower_case": False, "tokenizer_class": "ChatGLMTokenizer"}
    cases = {}
    for layout, file_content, config, shift in (("v2", with_tail, shared | {"num_image_tokens": 0}, 0), ("v1", text_only, shared, 20000)):
        folder = TARGET / layout
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ice_text.model").write_bytes(file_content.SerializeToString(deterministic=True))
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
        rules = Rules(with_tail.SerializeToString(deterministic=True), shift)
        cases[layout] = {
            "vocab_size": rules.pieces.get_piece_size() + shift,
            "ids": {name: rules.id(name) for name in ["<pad>", "<n>", *SPECIAL, "<|tab|>", "<|blank_2|>", "<|blank_80|>", "<0x00>", "<0xFF>"]},
            "texts": [{"text": text, "ids": rules.encode(text), "ids_without_prefix": rules.encode(text, False),
                       "decoded": rules.decode(rules.encode(text))} for text in TEXTS]}
    (TARGET / "expected.json").write_text(json.dumps(cases, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
