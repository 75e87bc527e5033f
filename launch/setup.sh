# shellcheck shell=bash
# Sourced by the other scripts: a virtual environment with cryjax in it, made at the first need.
# CRYJAX_VENV chooses another folder, or 'none' for the python that is active; PYTHON another
# interpreter to make it with, CRYJAX_EXTRAS extras of setup.py, as 'cuda', CRYJAX_CONSTRAINTS a
# file of versions to keep to, as launch/constraints.txt.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# A step on a CPU takes and gives back gigabytes; in pages of 2 MB that is a sixth of its time less.
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

# The stamp changes with what is to be installed, so an unchanged environment is used as it is.
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
