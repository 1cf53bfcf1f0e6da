#!/usr/bin/env bash
# Usage: quickstart/make_base.sh
#
# Makes everything of the quickstart anew: data/, base/tokenizer.model and the base model in base/. What is not
# committed (the general text, the training run) goes to quickstart_out/. Takes about a quarter of an hour on two
# cores. LORA is the program to use, build/release/bin/lora by default.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
case ${1:-} in
  -h | --help) sed -n '2,/^set/{s/^# \{0,1\}//;/^set/d;p}' "$0"; exit 0 ;;
esac
[ $# -eq 0 ] || { echo "make_base: error: no argument is expected; got: $*" >&2; exit 2; }
lora=$(realpath "${LORA:-$here/../build/release/bin/lora}")
command -v spm_train >/dev/null || { echo "make_base: error: spm_train is missing; install the package sentencepiece" >&2; exit 1; }
work=$here/../quickstart_out
mkdir -p "$work"

python3 "$here/make_data.py" text --output "$work/pretrain.jsonl"
python3 "$here/make_data.py" rows --output "$here/data"
"$here/make_tokenizer.sh" "$(realpath "$work")"

"$lora" train -c "$here/train_base.yaml" --set run.resume=none --overwrite
"$lora" convert --input "$work/base_run/model" --output "$work/base_bf16" --dtype bf16 --overwrite
for file in model.safetensors config.json tokenizer.model; do cp "$work/base_bf16/$file" "$here/base/$file"; done
(cd "$here" && du -cb base/* data/*)
