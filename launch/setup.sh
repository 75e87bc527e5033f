# shellcheck shell=bash
# Sourced by the other scripts: activates a virtual environment with cryjax, made when first needed.
# CRYJAX_VENV chooses another folder, or 'none' for the active python; PYTHON another interpreter to
# make it with; CRYJAX_EXTRAS extras of setup.py, such as 'cuda'; CRYJAX_CONSTRAINTS a pip
# constraints file, such as launch/constraints.txt.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# A step on a CPU allocates and frees gigabytes; with 2 MB pages it takes a sixth less time.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}

venv=${CRYJAX_VENV:-.venv}
extras=${CRYJAX_EXTRAS:-}

if [ "$venv" = none ]; then
  if ! python -c 'import sys, absl, jax; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "launch: error: CRYJAX_VENV=none, and the active python lacks cryjax's packages" >&2
    exit 2
  fi
  return
fi

# The stamp changes with what is to be installed, so an unchanged environment is reused.
wanted="$(cat setup.py ${CRYJAX_CONSTRAINTS:+"$CRYJAX_CONSTRAINTS"}) $extras"
stamp="$venv/.cryjax-$(printf '%s' "$wanted" | cksum | cut -d ' ' -f 1)"
if [ ! -e "$stamp" ]; then
  if [ -z "${PYTHON:-}" ]; then
    for PYTHON in python3.12 python3.11 python3 python; do
      "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
    done
  fi
  if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "launch: error: Python 3.11 or later is needed; name one with PYTHON=/path/to/python" >&2
    exit 2
  fi
  echo "launch: installing cryjax${extras:+[$extras]} into $venv with $("$PYTHON" --version)"
  [ -x "$venv/bin/python" ] || "$PYTHON" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    ${CRYJAX_CONSTRAINTS:+--constraint "$CRYJAX_CONSTRAINTS"} --editable ".${extras:+[$extras]}"
  touch "$stamp"
fi
# The scripts call `python` and `ruff` of this environment, whatever was active before.
PATH="$PWD/$venv/bin:$PATH"
case $venv in /*) PATH="$venv/bin:$PATH" ;; esac
export PATH
