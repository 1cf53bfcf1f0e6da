#!/usr/bin/env bash
# Usage: scripts/quickstart_glm.sh
#
# Sets up, builds, and walks the ADGEN recipe with a small ChatGLM: trains a base model on openings of short texts and how they go on, writes the rows
# into record files, tunes a LoRA adapter on advertisements, generates answers to held-out rows and scores them beside the
# untuned model's and beside answers that belong to another row. Results go to quickstart_out/glm; about eight minutes of processor
# time after the build. Fails unless the tuned model's BLEU-4 and ROUGE are clearly the highest. LORA: a program to use instead of building one.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

take_no_arguments "$@"
if [ -z "${LORA:-}" ]; then
  lora_setup
  lora_build_program
  LORA=$LORA_ROOT/build/release/bin/lora
fi
LORA=$(realpath "$LORA")
cd "$LORA_ROOT"
readonly work=$LORA_ROOT/quickstart_out/glm run_file=quickstart/glm/finetune.yaml
mkdir -p "$work"

# step WORDS...: says and runs one command of the program.
step() {
  say "lora $*"
  "$LORA" "$@"
}

python3 quickstart/make_data.py openings --output "$work/openings.jsonl"
step train -c quickstart/glm/train_base.yaml --set run.resume=none --overwrite
step prepare -c "$run_file" --set "run.output_dir=$work/prepared" --overwrite
step finetune -c "$run_file" --set run.resume=none --set data.format=records --set "data.train.path=$work/prepared/records/train" \
  --set "data.eval.path=$work/prepared/records/eval" --overwrite
step eval -c "$run_file" --set adapter.method=none --set "run.output_dir=$work/untuned" --overwrite
step eval -c "$run_file" --overwrite

# What an answer is worth that has nothing to do with its row: every row's is the next one's.
python3 - quickstart/data/dev.jsonl > "$work/other_rows.jsonl" << 'PYTHON'
import json, sys

answers = [json.loads(line)["summary"] for line in open(sys.argv[1], encoding="utf-8")]
for answer, other in zip(answers, answers[1:] + answers[:1]):
    print(json.dumps({"prediction": other, "reference": answer}, ensure_ascii=False))
PYTHON
step eval -c "$run_file" --predictions "$work/other_rows.jsonl" --set "run.output_dir=$work/other" --overwrite

python3 - "$work" << 'PYTHON'
import json, pathlib, sys

results = {name: json.loads((pathlib.Path(sys.argv[1]) / folder / "eval.json").read_text())
           for name, folder in (("untuned", "untuned"), ("another row's answer", "other"), ("tuned", "finetune"))}
metrics = ("rouge-1", "rouge-2", "rouge-l", "bleu-4")
print(f"{'':<22}" + "".join(f"{metric:>10}" for metric in metrics))
for name, result in results.items():
    print(f"{name:<22}" + "".join(f"{result[metric]:>10.2f}" for metric in metrics))
beaten = [metric for metric in metrics
          if results["tuned"][metric] < 1.2 * max(results["untuned"][metric], results["another row's answer"][metric])]
sys.exit(f"the tuned model must be clearly better; it is not in {', '.join(beaten)}" if beaten else 0)
PYTHON
