#!/usr/bin/env bash
# Usage: benchmarks/h200.sh [STAGE...]
#
# What is to be run on a machine with an NVIDIA GPU (sm_80 or sm_90), in stages that are each done in minutes:
#
#   tests      builds with CUDA and compares every kernel, and training, with the CPU
#   sanitize   the same tests under compute-sanitizer: memcheck, racecheck, synccheck
#   inputs     draws a 7-billion-parameter Llama, adapters of rank 16 on every linear layer, two rows of 4096 tokens
#   compare    a step of 8192 tokens without recomputation against transformers + peft, eager and compiled, interleaved
#
# Without any: all of them. ROUNDS (9): steps of each side. PYTHON: a Python with torch, transformers and peft. The build
# uses that torch's LibTorch unless LORA_TORCH_ROOT says otherwise. Results: benchmarks/results/h200_*.json.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

python=${PYTHON:-python3}
rounds=${ROUNDS:-9}
inputs=build/bench_inputs_7b

tests() {
  LORA_TORCH_ROOT=${LORA_TORCH_ROOT:-$("$python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent)')}
  export LORA_TORCH_ROOT
  cmake --preset cuda
  cmake --build --preset cuda --parallel "$(nproc)"
  build/cuda/bin/test_cuda
}

sanitize() {
  local tool
  for tool in memcheck racecheck synccheck; do
    # Our kernels alone: LibTorch's are not ours to check.
    compute-sanitizer --tool "$tool" --error-exitcode 1 --kernel-name kernel_substring=lora build/cuda/bin/test_cuda
  done
}

inputs() {
  "$python" benchmarks/make_inputs.py "$inputs" --size 7b --seq 4096 --batch 2 --device cuda
}

compare() {
  "$python" benchmarks/compare.py h200_eager h200_compile --ours build/cuda/bin/bench_lora_step --inputs "$inputs" \
    --rounds "$rounds" --out benchmarks/results
}

for stage in "${@:-all}"; do
  case $stage in
    tests | sanitize | inputs | compare) "$stage" ;;
    all) tests && sanitize && inputs && compare ;;
    *) sed -n '2,/^[^#]/{s/^# \{0,1\}//;t print;b;:print;p}' "${BASH_SOURCE[0]}"; exit 2 ;;
  esac
done
