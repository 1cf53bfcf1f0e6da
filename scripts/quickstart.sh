#!/usr/bin/env bash
# Usage: scripts/quickstart.sh
#
# Sets up, builds and runs the main job: a LoRA adapter teaches the small Llama in quickstart/base to write
# advertisements from lists of attributes. Results go to quickstart_out/finetune; running it again starts anew.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

take_no_arguments "$@"
lora_setup
lora_build_program
cd "$LORA_ROOT"
say "fine-tuning: build/release/bin/lora finetune -c quickstart/finetune.yaml --set run.resume=none --overwrite"
exec build/release/bin/lora finetune -c quickstart/finetune.yaml --set run.resume=none --overwrite
