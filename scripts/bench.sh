#!/usr/bin/env bash
# Usage: scripts/bench.sh [--rounds N]
#
# Measures training steps against transformers + peft, interleaved in one run: the 134-million-parameter Llama of
# random weights in bf16, LoRA r = 8 on q and v, 4 rows of 128 tokens; with one thread (CPU time) and with two (wall
# time). Results: benchmarks/results/*.json and a summary on the screen. The peers live in .venv-peers (several GB).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

rounds=9
case ${1:-} in
  -h | --help) show_help; exit 0 ;;
  --rounds) rounds=${2:?--rounds needs a number} ;;
  ?*) die "--rounds is the only option; got '$1'; see scripts/bench.sh --help" ;;
esac

peers=${LORA_PEERS:-$LORA_ROOT/.venv-peers}
if ! "$peers/bin/python" -c 'import peft, transformers, torch' 2> /dev/null; then
  say "installing the peers (torch, transformers, peft) into $peers"
  python3 -m venv "$peers"
  "$peers/bin/pip" install -q torch==2.11.0 transformers==5.23.0 peft==0.21.2 safetensors accelerate
fi
lora_setup
lora_build release

inputs=$LORA_ROOT/build/bench_inputs
if [ ! -e "$inputs/rows.jsonl" ]; then
  say "making a random model, an adapter and rows in build/bench_inputs"
  "$peers/bin/python" "$LORA_ROOT/benchmarks/make_inputs.py" "$inputs"
fi
cd "$LORA_ROOT"
for threads in 1 2; do
  OMP_NUM_THREADS=$threads "$peers/bin/python" benchmarks/compare.py --ours build/release/bin/bench_lora_step \
    --inputs build/bench_inputs --threads "$threads" --rounds "$rounds" --out "benchmarks/results/peft_${threads}_threads.json"
done
