"""Writes tests/reference/eval: what jieba, nltk and rouge_chinese make of a few texts.

Run with jieba 0.42.1, nltk 3.10.4 and rouge_chinese 1.0.3 installed: python make_eval_reference.py. dictionary.txt is
written by hand; segmentations.json holds jieba's tokens (HMM=False) with that dictionary, scores.json the scores of pairs
of texts: BLEU-4 on characters with smoothing method 3, ROUGE on jieba's tokens.
"""

import json
import logging
import pathlib
import tempfile

import jieba
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_chinese import Rouge

OUT = pathlib.Path(__file__).parent / "eval"

TEXTS = [
    "", " ", "这款连衣裙", "这款白色的连衣裙简约而不简单，十分百搭。", "南京市长江大桥", "南京市长江大桥在南京",
    "甲乙丙", "甲乙丙甲乙丙丙", "丁戊己", "丁戊己丁戊", "赠品", "葡萄", "葡", "葡葡萄酒萄", "萄酒", "设计师的设计感",
    "层次感", "层次，感", "连衣", "衣裙连衣裙裙", "生僻字没有的词语", "十分百", "我是不是在这", "不简单不简",
    "T恤", "T恤AT&T", "AT&TX", "AT&", "at&t", "C++和c#", "C+++C", "iPhone15", "iPhoneX iPhone x", "xx1x", "x",
    "abc", "a1b2中c3", "abc的def", "100%", "100%棉", "99%棉", "v1.0", "v1.0.1", "USB-C接口", "USB-c", "-", "--a--",
    "a_b.c&d#e+f-g%h", "the quick, brown fox", "Hello World!", "  two  spaces ", "tab\tand\nline\r\nends\r\rhere\n\r",
    "\u3000全角\u00a0空格\u2003", "\u200b零\ufeff宽", "\x1c\x1d\x85分\u2028隔符", "１２３ＡＢＣ全角", "😀这款👍🏽衣😀😀", "é白e\u0301",
    "かな白カナ", "한국 衣", "《这款》“白色”——优雅……", "\u9fd5白\u9fd6白", "鿕\u9fd6䶵\u4e00丁\u3400", "\U00020000白\U0002a6df", "。，！？", "。。。", "price: $5.00/件",
    "衣" * 70, "连衣裙" * 30, "x" * 50 + "白" * 50, "\ufffd白\ufffd",
]

PAIRS = [
    ("这款白色的连衣裙简约而不简单，十分百搭。", "这款白色的连衣裙简约而不简单，十分百搭。"),
    ("这款白色的衬衫简约，十分百搭。", "这款白色的连衣裙简约而不简单，十分百搭。"),
    ("这款白色的连衣裙简约而不简单，十分百搭，气质优雅。", "白色的连衣裙。"),
    ("白色", "这款白色的连衣裙"), ("白", "白"), ("白色", "白色"), ("白色衣", "白色衣"), ("白色上衣", "白色上衣"),
    ("白", "这款白色的连衣裙"), ("色白", "白色"), ("黑", "白"), ("衣裙连", "连衣裙"),
    ("的的的的的的的", "这款的连衣裙的上衣的"), ("的的的", "的"), ("优雅优雅优雅", "优雅，优雅。"),
    ("上衣 衬衫 T恤", "T恤 衬衫 上衣"), ("T恤 衬衫 上衣", "T恤，衬衫，上衣"), ("the cat sat on the mat", "the cat is on the mat"),
    ("iPhone15是时尚的", "iPhone 15 时尚"), ("😀白😀", "😀白👍"), ("是是是在在在了了了", "在是了在是了在是了"),
    ("设计师的设计感，层次感的设计，是设计师的优雅。", "优雅的设计师，设计了十分优雅的层次感。"),
    ("这款上衣", "这款上衣这款上衣这款上衣这款上衣"), ("这款上衣这款上衣这款上衣这款上衣", "这款上衣"),
    ("南京市长江大桥在南京，" * 12, "南京的长江大桥，是南京市长的大桥。" * 9), ("长江" * 80, "江长" * 75),
]


def tokenizer():
    # jieba writes a cache of the dictionary beside where it is told to.
    jieba.setLogLevel(logging.WARNING)
    tokens = jieba.Tokenizer(dictionary=str(OUT / "dictionary.txt"))
    tokens.tmp_dir = tempfile.mkdtemp()
    return tokens


def scores(tokens, prediction, reference):
    joined = [" ".join(tokens.lcut(text, HMM=False)) for text in (prediction, reference)]
    rouge = Rouge().get_scores(*joined)[0]
    bleu = float(sentence_bleu([list(reference)], list(prediction), smoothing_function=SmoothingFunction().method3))
    rounded = {name: round(rouge[name]["f"] * 100, 4) for name in rouge} | {"bleu-4": round(bleu * 100, 4)}
    return {"prediction": prediction, "reference": reference, "bleu": bleu, "rouge": rouge, "rounded": rounded}


def write(name, rows):
    rows = ",\n ".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (OUT / name).write_text(f"[\n {rows}\n]\n", encoding="utf-8")


def main():
    tokens = tokenizer()
    write("segmentations.json", [{"text": text, "tokens": tokens.lcut(text, HMM=False)} for text in TEXTS])
    write("scores.json", [scores(tokens, *pair) for pair in PAIRS])


if __name__ == "__main__":
    main()
