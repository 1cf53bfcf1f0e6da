#!/usr/bin/env bash
# Usage: scripts/bench.sh [--rounds N] [CASE...]
#        scripts/bench.sh --smoke
#        scripts/bench.sh --peers
#
# Measures training steps and decoding against transformers + peft, interleaved in one run per case, on the
# 134-million-parameter Llama of random weights, and the way of the data: see benchmarks/README.md. Cases are those of
# benchmarks/compare.py and benchmarks/data_path.py (all without any). Results: benchmarks/results/CASE.json and a line each on the screen. With --smoke a small model and two
# rounds, which check that both sides compute the same gradients and write nothing. The peers live in .venv-peers
# (several GB); --peers installs them and does nothing else.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

rounds=9
inputs=$LORA_ROOT/build/bench_inputs
size=110m
results=(--out benchmarks/results)
case ${1:-} in
  -h | --help) show_help; exit 0 ;;
  --peers) only_peers=1 ;;
  --rounds) rounds=${2:?--rounds needs a number}; shift 2 ;;
  --smoke)
    rounds=2
    inputs=$LORA_ROOT/build/bench_smoke
    size=15m
    results=()
    set -- eager_1_thread all_linear_1_thread adgen_packed_1_thread full_1_thread decode_1_thread
    ;;
esac
[ $# -gt 0 ] || set -- all
data_cases=() step_cases=()
for name in "$@"; do
  case $name in
    data | slow_source) data_cases+=("$name") ;;
    all) data_cases=(data slow_source) step_cases+=(all) ;;
    *) step_cases+=("$name") ;;
  esac
done

peers=${LORA_PEERS:-$LORA_ROOT/.venv-peers}
if ! "$peers/bin/python" -c 'import peft, transformers, torch, sentencepiece' 2> /dev/null; then
  say "installing the peers (torch, transformers, peft) into $peers"
  python3 -m venv "$peers"
  "$peers/bin/pip" install -q torch==2.11.0 transformers==5.23.0 peft==0.21.2 safetensors accelerate sentencepiece==0.2.3
fi
if [ -n "${only_peers:-}" ]; then exit 0; fi
lora_setup
lora_build release

cd "$LORA_ROOT"
if [ ${#data_cases[@]} -gt 0 ]; then
  mkdir -p "$inputs"
  "$peers/bin/python" benchmarks/data_path.py "${data_cases[@]}" --ours build/release/bin/bench_data_path \
    --inputs "$inputs" --rounds "$rounds" "${results[@]}"
fi
[ ${#step_cases[@]} -gt 0 ] || exit 0
if [ ! -e "$inputs/rows_adgen.jsonl" ] || [ ! -e "$inputs/adapter_adalora" ]; then
  say "making a random model, adapters and rows in $inputs"
  "$peers/bin/python" benchmarks/make_inputs.py "$inputs" --size "$size"
fi
"$peers/bin/python" benchmarks/compare.py "${step_cases[@]}" --ours build/release/bin/bench_lora_step --inputs "$inputs" \
  --rounds "$rounds" "${results[@]}"
