#!/usr/bin/env python3
"""Rows of chat templates: tests/reference/chat_templates/expected.json, with the quick start's tokenizer.

llama2: ids of transformers' apply_chat_template with Llama-2's template, which must equal those of Meta's rule (each turn
encoded by itself); labels by Meta's rule. vicuna, alpaca: texts as FastChat and alpaca-lora join them, encoded whole between end
tokens. usage: make_chat_reference.py SOURCE_DIR; needs transformers 5.23.0, sentencepiece."""
import json
import pathlib
import sys

import sentencepiece
from transformers import LlamaTokenizer

SOURCE = pathlib.Path(sys.argv[1])
MODEL = SOURCE / "quickstart/base/tokenizer.model"
SP = sentencepiece.SentencePieceProcessor(model_file=str(MODEL))
BOS, EOS = SP.bos_id(), SP.eos_id()

# Llama-2's rules in the language of transformers.
LLAMA2 = """
{%- set system = messages[0]['content'] if messages[0]['role'] == 'system' else none -%}
{%- for message in (messages[1:] if system is not none else messages) -%}
{%- set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] if loop.index0 == 0 and system is not none else message['content'] -%}
{%- if message['role'] == 'user' -%}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{%- else -%}{{ ' ' + content.strip() + ' ' + eos_token }}{%- endif -%}
{%- endfor -%}"""

POLITE = ("A chat between a curious user and an artificial intelligence assistant. "
          "The assistant gives helpful, detailed, and polite answers to the user's questions.")
ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"

CONVERSATIONS = [
    [("user", "类型#裤*颜色#蓝色"), ("assistant", "这款裤子是蓝色的。")],
    [("user", "  hello there \n"), ("assistant", "\thi ")],
    [("system", "Answer briefly."), ("user", "who?"), ("assistant", "me"), ("user", "and\nwhere?"), ("assistant", "here\n- there")],
    [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e"), ("assistant", "f f  f")],
    [("user", "a 1 2 3"), ("assistant", "b"), ("user", "no answer yet")],
]


def turns_of(conversation):
    system = conversation[0][1] if conversation[0][0] == "system" else None
    turns = [text for role, text in conversation if role != "system"]
    return system, turns


def row(parts):
    """Parts are (ids, are targets)."""
    ids = [i for part, _ in parts for i in part]
    return ids, [i if learned else -100 for part, learned in parts for i in part]


def llama2(conversation):
    system, turns = turns_of(conversation)
    if system is not None:
        turns[0] = f"<<SYS>>\n{system}\n<</SYS>>\n\n{turns[0]}"
    parts = []
    for i in range(0, len(turns), 2):
        prompt = [BOS] + SP.encode(f"[INST] {turns[i].strip()} [/INST]")
        parts.append((prompt, False))
        if i + 1 < len(turns):
            whole = [BOS] + SP.encode(f"[INST] {turns[i].strip()} [/INST] {turns[i + 1].strip()} ") + [EOS]  # Meta encodes a turn at once
            assert whole[:len(prompt)] == prompt
            parts.append((whole[len(prompt):], True))
    ids, labels = row(parts)
    applied = TOKENIZER.apply_chat_template([{"role": role, "content": text} for role, text in conversation], chat_template=LLAMA2, tokenize=True,
                                            return_dict=False)
    assert applied == ids, (applied, ids)
    return ids, labels


def joined(prefix, ask, turns, answer):
    """Texts between end tokens are encoded whole; the answer begins where the prompt's ids end."""
    parts, lead = [], prefix
    for i in range(0, len(turns), 2):
        prompt = lead + ask(turns[i])
        begin = [BOS] if i == 0 else []
        parts.append((begin + SP.encode(prompt), False))
        if i + 1 < len(turns):
            whole = SP.encode(prompt + answer(turns[i + 1]))
            assert whole[:len(SP.encode(prompt))] == SP.encode(prompt)
            parts.append((whole[len(SP.encode(prompt)):] + [EOS], True))
        lead = ""
    return row(parts)


def vicuna(conversation):
    system, turns = turns_of(conversation)
    return joined((system or POLITE) + " ", lambda text: f"USER: {text} ASSISTANT:", turns, lambda text: f" {text}")


def alpaca(conversation):
    system, turns = turns_of(conversation)
    prefix = f"{system}\n\n" if system else ALPACA
    return joined(prefix, lambda text: f"### Instruction:\n{text}\n\n### Response:\n", turns, lambda text: text)


TOKENIZER = LlamaTokenizer.from_pretrained(str(MODEL.parent), legacy=True)  # a space in front of every text, as Meta's has
rows = []
for name, encode in (("llama2", llama2), ("vicuna", vicuna), ("alpaca", alpaca)):
    for conversation in CONVERSATIONS:
        ids, labels = encode(conversation)
        rows.append({"template": name, "messages": [{"role": role, "content": text} for role, text in conversation],
                     "input_ids": ids, "labels": labels})
target = SOURCE / "tests/reference/chat_templates/expected.json"
target.parent.mkdir(exist_ok=True)
target.write_text("[\n" + ",\n".join(json.dumps(one, ensure_ascii=False) for one in rows) + "\n]\n")
print(f"wrote {len(rows)} rows")
