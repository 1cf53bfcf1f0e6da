#!/usr/bin/env bash
# Usage: scripts/build.sh [preset]
#
# Configures and builds build/<preset>; the presets are release (the default), dev, asan and cuda. What is missing
# on the machine is installed by scripts/setup.sh before. LORA_JOBS sets the number of compile jobs.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case ${1:-} in
  -h | --help) show_help; exit 0 ;;
  -*) die "a preset is the only argument; got '$1'; see scripts/build.sh --help" ;;
esac
[ $# -le 1 ] || die "one preset at a time; got: $*"
lora_build "${1:-release}"
