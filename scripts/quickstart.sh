#!/usr/bin/env bash
# Usage: scripts/quickstart.sh
#
# Sets up, builds and runs the main job.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case ${1:-} in
  -h | --help) show_help; exit 0 ;;
  ?*) die "no arguments are taken; got '$1'" ;;
esac
lora_setup
lora_build release
