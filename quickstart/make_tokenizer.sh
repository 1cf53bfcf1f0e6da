#!/usr/bin/env bash
# Usage: quickstart/make_tokenizer.sh WORK_DIR
#
# Trains quickstart/base/tokenizer.model on WORK_DIR/pretrain.jsonl and data/train.jsonl with spm_train (Debian's
# package sentencepiece), with the settings of Llama 2's tokenizer: BPE, bytes for unknown characters, single digits,
# <unk> <s> </s> = 0 1 2, no padding token, text as it is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
[ $# -eq 1 ] || { sed -n '2,/^set/{s/^# \{0,1\}//;/^set/d;p}' "$0" >&2; exit 2; }
work=$1

# The values of every JSON line; 20,000 of each are enough for the counts. Commas around particles keep them out of
# other pieces: 黑色 is then one piece in 黑色的 too.
python3 - "$work/pretrain.jsonl" data/train.jsonl > "$work/tokenizer_input.txt" <<'PYTHON'
import itertools, json, re, sys

for path in sys.argv[1:]:
    with open(path, encoding="utf-8") as file:
        for line in itertools.islice(file, 20000):
            for text in json.loads(line).values():
                text = re.sub("，+", "，", re.sub("([的了是和就也有很都])", r"，\1，", text))
                print(re.sub(r"，(?=\W)|(?<=\W)，", "", text))
PYTHON

mkdir -p base
# The file keeps the names it was made with, so they are relative.
(cd "$work" && spm_train --input=tokenizer_input.txt --model_prefix=tokenizer --model_type=bpe --vocab_size=2000 \
  --character_coverage=1.0 --byte_fallback=true --split_digits=true --max_sentencepiece_length=2 \
  --normalization_rule_name=identity --add_dummy_prefix=true --remove_extra_whitespaces=false \
  --unk_id=0 --bos_id=1 --eos_id=2 --pad_id=-1 --num_threads=2 --minloglevel=1)
cp "$work/tokenizer.model" base/tokenizer.model
echo "base/tokenizer.model: $(stat -c %s base/tokenizer.model) bytes"
