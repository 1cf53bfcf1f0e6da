#!/usr/bin/env bash
# Usage: scripts/setup.sh [--cuda]
#
# Installs what the build needs and does not find: Debian/Ubuntu packages (with apt-get, as root or through sudo), and
# LibTorch, which is torch's wheel in .venv. Nothing that is there is upgraded or replaced; with everything in place it
# only says so.
#
#   --cuda   completes .venv with the CUDA libraries that LibTorch needs on a GPU (several GB; default: CPU only)
#
# Another LibTorch is used, and none installed, when LORA_TORCH_ROOT, Torch_DIR or CMAKE_PREFIX_PATH leads to one.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

readonly torch_packages=(torch==2.11.0 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85)
readonly venv=$LORA_ROOT/.venv
readonly unfinished=$venv/.torch-unfinished

cuda=no
for argument in "$@"; do
  case $argument in
    --cuda) cuda=yes ;;
    -h | --help) show_help; exit 0 ;;
    *) die "--cuda is the only option; got '$argument'; see scripts/setup.sh --help" ;;
  esac
done

# --- Debian packages ---------------------------------------------------------------------------------------------------

IFS=':;' read -r -a prefixes <<< "${CMAKE_PREFIX_PATH:-}"
prefixes+=(/usr/local /usr)

# Whether the build will find the CMake package of this name: its config file below a prefix, or <name>_DIR or _ROOT.
has_cmake_package() {
  local name=$1 prefix
  if printenv "${name}_DIR" || printenv "${name}_ROOT"; then return 0; fi > /dev/null
  for prefix in "${prefixes[@]}"; do
    if compgen -G "$prefix/lib*/cmake/$name*/*onfig.cmake" || compgen -G "$prefix/lib/*/cmake/$name*/*onfig.cmake" ||
      compgen -G "$prefix/share/cmake/$name*/*onfig.cmake"; then
      return 0
    fi
  done > /dev/null
  return 1
}

has_header() {
  local prefix
  for prefix in "${prefixes[@]}"; do
    if [ -e "$prefix/include/$1" ]; then return 0; fi
  done
  return 1
}

has_program() { command -v "$1" > /dev/null; }
can_make_venv() { python3 -c 'import ensurepip, venv' 2> /dev/null; }

# The test of presence, then the package that provides it.
missing_packages() {
  has_program "${CXX:-c++}" || echo g++
  has_program cmake || echo cmake
  has_program ninja || echo ninja-build
  has_program ccache || echo ccache
  has_program python3 || echo python3
  has_cmake_package fmt || echo libfmt-dev
  has_cmake_package spdlog || echo libspdlog-dev
  has_cmake_package yaml-cpp || echo libyaml-cpp-dev
  has_cmake_package CLI11 || echo libcli11-dev
  has_cmake_package Catch2 || echo catch2
  has_header nlohmann/json.hpp || echo nlohmann-json3-dev
  has_header sentencepiece_processor.h || echo libsentencepiece-dev
  has_header xxhash.h || echo libxxhash-dev
  if [ "$1" = needs-venv ]; then can_make_venv || echo python3-venv; fi
}

install_packages() {
  local packages=("$@") as_root=()
  local by_hand="apt-get update && apt-get install --no-install-recommends ${packages[*]}"
  has_program apt-get || die "these Debian packages, or what they provide, must be there: ${packages[*]}; this system has no apt-get; install them its own way"
  if [ "$(id -u)" -ne 0 ]; then
    if ! has_program sudo || { [ ! -t 0 ] && ! sudo -n true 2> /dev/null; }; then
      die "packages are missing, and this is neither root nor allowed to use sudo; run as root: $by_hand"
    fi
    as_root=(sudo)
  fi
  say "installing Debian packages: ${packages[*]}"
  local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300)
  "${apt[@]}" update >&2 || say "apt-get update failed; going on with the package lists that are there"
  # --no-remove: rather fail than take away something of the user's.
  "${apt[@]}" install -y --no-install-recommends --no-upgrade --no-remove "${packages[@]}" >&2 ||
    die "apt-get could not install the packages; see above; by hand: $by_hand"
}

# --- LibTorch ----------------------------------------------------------------------------------------------------------

is_torch() { [ -e "$1/lib/libtorch_cpu.so" ] && [ -e "$1/include/ATen/ATen.h" ]; }

# The user's own LibTorch, looked for where cmake/LoraTorch.cmake does; empty when there is none.
given_torch() {
  local prefix candidate
  if [ -n "${LORA_TORCH_ROOT:-}" ]; then
    is_torch "$LORA_TORCH_ROOT" || die "LORA_TORCH_ROOT must hold lib/libtorch_cpu.so and include/ATen; $LORA_TORCH_ROOT does not; correct or unset it"
    echo "$LORA_TORCH_ROOT"
    return
  fi
  for prefix in ${Torch_DIR:+"$Torch_DIR/../../.."} "${prefixes[@]}"; do
    for candidate in "$prefix" "$prefix/torch" "$prefix/../.."; do
      case $prefix in /usr | /usr/local) continue ;; esac
      if is_torch "$candidate"; then
        echo "$candidate"
        return
      fi
    done
  done
}

# The folder of torch in .venv; empty when there is none or its installation was interrupted.
installed_torch() {
  local folder
  for folder in "$venv"/lib/python3*/site-packages/torch; do
    if is_torch "$folder" && [ ! -e "$unfinished" ]; then
      echo "$folder"
      return
    fi
  done
}

# Whether the loader finds everything that LibTorch's CUDA half needs; the driver's own library comes with the driver.
has_cuda_libraries() {
  [ -e "$1/lib/libtorch_cuda.so" ] &&
    ! LC_ALL=C ldd "$1/lib/libtorch_cuda.so" | grep -v 'libcuda\.so' | grep -q 'not found'
}

run_pip() { "$venv/bin/python" -m pip --disable-pip-version-check --no-input "$@" >&2; }

make_venv() {
  if [ ! -e "$venv/bin/python" ]; then
    say "making the Python environment .venv"
    python3 -m venv "$venv" >&2 || {
      rm -rf "$venv"
      die "python3 -m venv failed; see above"
    }
  elif ! "$venv/bin/python" -m pip --version > /dev/null 2>&1; then
    "$venv/bin/python" -m ensurepip >&2 || die ".venv has no pip and ensurepip failed; remove .venv or install pip there"
  fi
}

install_torch() {
  make_venv
  if [ -e "$unfinished" ]; then
    say "an earlier installation of torch was interrupted; starting it again"
    rm -rf "$venv"/lib/python3*/site-packages/{torch,torchgen,functorch,nvidia,torch-*.dist-info,nvidia_*.dist-info}
  fi
  touch "$unfinished"
  say "installing ${torch_packages[*]} into .venv (about 500 MB to download)"
  run_pip install --no-deps "${torch_packages[@]}" || die "pip could not install torch; see above; run this again to retry"
  rm "$unfinished"
}

install_cuda_libraries() {
  say "completing .venv with the CUDA libraries (several GB)"
  # torch itself is there, so pip takes only what it lacks.
  run_pip install torch || die "pip could not install the CUDA libraries; see above; run this again to retry"
}

# Under sudo, .venv belongs to who called it.
give_venv_to_caller() {
  if [ -n "${SUDO_UID:-}" ] && [ "$(id -u)" -eq 0 ]; then chown -R "$SUDO_UID:${SUDO_GID:-$SUDO_UID}" "$venv"; fi
}

# --- What is to be done ------------------------------------------------------------------------------------------------

given=$(given_torch)
torch=${given:-$(installed_torch)}
did_something=no

missing_list=$(missing_packages "$([ -n "$torch" ] || [ -x "$venv/bin/pip" ] || echo needs-venv)")
mapfile -t missing <<< "$missing_list"
if [ -n "$missing_list" ]; then
  install_packages "${missing[@]}"
  did_something=yes
fi

if [ -z "$torch" ]; then
  install_torch
  give_venv_to_caller
  torch=$(installed_torch)
  did_something=yes
fi

if [ "$cuda" = yes ] && ! has_cuda_libraries "$torch"; then
  if [ -n "$given" ]; then die "--cuda needs a LibTorch with CUDA; $given lacks libtorch_cuda.so or a library that it needs"; fi
  install_cuda_libraries
  give_venv_to_caller
  has_cuda_libraries "$torch" || die "libtorch_cuda.so still lacks a library; see: ldd $torch/lib/libtorch_cuda.so"
  did_something=yes
fi

# --- What was there before may be too old ------------------------------------------------------------------------------

require_version() {
  local name=$1 found=$2 needed=$3
  if [ "$(printf '%s\n' "$needed" "$found" | sort -V | head -n 1)" != "$needed" ]; then
    die "$name $needed or newer is needed; found $found; put a newer one first on PATH"
  fi
}
require_version cmake "$(cmake --version | awk 'NR == 1 {print $3}')" 3.25
if [[ $("${CXX:-c++}" --version) == *"Free Software Foundation"* ]]; then
  require_version g++ "$("${CXX:-c++}" -dumpfullversion)" 12
fi

if [ "$did_something" = yes ]; then say "done; LibTorch: $torch"; else say "nothing to do; LibTorch: $torch"; fi
