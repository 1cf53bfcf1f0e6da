# What the scripts share; sourced, not run. Works from any current directory.
LORA_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# One line on stderr, under the name of the script that runs.
say() { printf '%s: %s\n' "$(basename "$0" .sh)" "$*" >&2; }
die() {
  printf '%s: error: %s\n' "$(basename "$0" .sh)" "$*" >&2
  exit 1
}

# Prints the comment block at the head of the running script, which is its help.
show_help() { sed -n '2,/^[^#]/{s/^# \{0,1\}//;t print;b;:print;p}' "$0"; }

# For scripts without arguments: take_no_arguments "$@" shows the help that was asked for, or refuses what was given.
take_no_arguments() {
  case ${1:-} in
    -h | --help) show_help; exit 0 ;;
    ?*) die "no arguments are taken; got '$1'" ;;
  esac
}

# Compile jobs: LORA_JOBS, else one per core, as far as memory goes (a file that includes torch takes up to 1.5 GB).
lora_jobs() {
  if [ -n "${LORA_JOBS:-}" ]; then
    echo "$LORA_JOBS"
    return
  fi
  local cores memory_kb by_memory
  cores=$(nproc)
  memory_kb=$(awk '/^MemAvailable:/ {print $2}' /proc/meminfo)
  by_memory=$((memory_kb / 1500000))
  if [ "$by_memory" -lt 1 ]; then by_memory=1; fi
  echo $((cores < by_memory ? cores : by_memory))
}

# Installs what is missing; see scripts/setup.sh.
lora_setup() { "$LORA_ROOT/scripts/setup.sh" "$@"; }

# Configures and builds one preset into build/<preset>.
lora_build() {
  local preset=$1
  (cd "$LORA_ROOT" && cmake --preset "$preset" && cmake --build --preset "$preset" --parallel "$(lora_jobs)")
}

# The release preset's program alone, without tests and examples.
lora_build_program() {
  (cd "$LORA_ROOT" && cmake --preset release && cmake --build --preset release --parallel "$(lora_jobs)" --target lora_program)
}
