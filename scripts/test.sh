#!/usr/bin/env bash
# Usage: scripts/test.sh [ctest arguments]
#
# Sets up, builds the release preset and runs all tests, for example only those of one module, verbosely:
#   scripts/test.sh -R formats -V
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case ${1:-} in
  -h | --help) show_help; exit 0 ;;
esac
lora_setup
lora_build release
cd "$LORA_ROOT"
exec ctest --preset release "$@"
