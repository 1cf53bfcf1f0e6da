"""Compares the segmenter dict with jieba, and the metrics with rouge_chinese and nltk, on thousands of texts.

Run with jieba 0.42.1, nltk 3.10.4 and rouge_chinese 1.0.3 installed, after the tests were built:
    python tests/reference/compare_eval.py build/release/bin/eval_rows [ROWS.jsonl ...]
The dictionary is jieba's own. Every text of the rows given (all strings of their objects) is cut as it is and shuffled
with letters, digits, signs and white space; 20,000 texts are made of random characters and words of the dictionary.
Prints what differs and exits with 1 when anything does.
"""

import json
import logging
import pathlib
import random
import subprocess
import sys

import jieba
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_chinese import Rouge

DICTIONARY = pathlib.Path(jieba.__file__).parent / "dict.txt"
PIECES = list("abcXYZ0189+#&._%-") + list(" \t\n\r\u3000\u00a0\u2028\u200b\x1c\x85") + ["\r\n", "iPhone", "AT&T", "C++"]
PIECES += list("，。！？、“”《》…·—～（）") + list("😀👍🏽é한かカ䶵鿕\u9fd6\ufeff１Ａ") + ["\U00020000", "了", "的", "一"]


def texts_of(paths):
    for path in paths:
        for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines():
            yield from (value for value in json.loads(line).values() if isinstance(value, str))


def mixed(text, draw):
    """A text with pieces put in, and some of its characters taken out."""
    characters = [c for c in text if draw.random() > 0.05]
    for _ in range(draw.randrange(12)):
        characters.insert(draw.randrange(len(characters) + 1), draw.choice(PIECES))
    return "".join(characters)


def made_up(words, draw):
    kinds = [lambda: draw.choice(PIECES), lambda: draw.choice(words), lambda: chr(draw.randrange(0x4E00, 0x9FD8)),
             lambda: draw.choice(words)[: draw.randrange(1, 4)], lambda: chr(draw.choice([draw.randrange(1, 0xD800), draw.randrange(0xE000, 0x30000)]))]
    return "".join(draw.choice(kinds)() for _ in range(draw.randrange(40)))


def all_texts(paths):
    draw = random.Random(1)
    words = [line.split(" ")[0] for line in DICTIONARY.read_text(encoding="utf-8").splitlines()]
    given = list(texts_of(paths))
    return given + [mixed(text, draw) for text in given for _ in range(3)] + [made_up(words, draw) for _ in range(20_000)]


def reference_scores(prediction, reference, tokens):
    joined = [" ".join(side) for side in tokens]
    if not all(side.strip() for side in joined):
        return {"rouge-1": 0, "rouge-2": 0, "rouge-l": 0}  # rouge_chinese raises
    rouge = Rouge().get_scores(*joined)[0]
    return {name: round(rouge[name]["f"] * 100, 4) for name in rouge}


def reference_bleu(prediction, reference):
    return round(sentence_bleu([list(reference)], list(prediction), smoothing_function=SmoothingFunction().method3) * 100, 4)


def compare(row, result):
    """What differs, as text."""
    texts = (row["prediction"], row["reference"])
    tokens = [jieba.lcut(text, HMM=False) for text in texts]
    expected = {"bleu-4": reference_bleu(*texts)}
    # rouge_chinese splits at line feeds and counts an empty token for each line without text.
    if not any("\n" in text for text in texts):
        expected |= reference_scores(*texts, tokens)
    found = {name: result["scores"][name] for name in expected}
    if tokens != result["tokens"]:
        yield f"tokens of {texts}: {result['tokens']}, not {tokens}"
    if any(abs(found[name] - expected[name]) > 1e-9 for name in expected):
        yield f"scores of {texts}: {found}, not {expected}"


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    jieba.setLogLevel(logging.WARNING)
    texts = all_texts(sys.argv[2:])
    rows = [{"prediction": a, "reference": b} for a, b in zip(texts[::2], texts[1::2])]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    done = subprocess.run([sys.argv[1], "dict", str(DICTIONARY)], input=lines.encode(), stdout=subprocess.PIPE, check=True)
    results = [json.loads(line) for line in done.stdout.decode().split("\n") if line]
    assert len(results) == len(rows), (len(results), len(rows))
    differences = [difference for row, result in zip(rows, results) for difference in compare(row, result)]
    for difference in differences[:20]:
        print(difference)
    print(f"{len(texts)} texts, {len(rows)} pairs, {len(differences)} differences")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
