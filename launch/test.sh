#!/usr/bin/env bash
# Sets itself up from nothing and runs linter, types and tests: bash launch/test.sh [arguments of pytest]
export CRYJAX_EXTRAS=${CRYJAX_EXTRAS:-test}
source "$(dirname "$0")/setup.sh"
ruff check .
ruff format --check .
mypy
# What the programs compile in one test serves the others, and the next time.
export CRYJAX_TEST_CACHE=${CRYJAX_TEST_CACHE:-$PWD/.pytest_cache/compiled}
# Their threads would fight over the cores of two processes.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
# Two processes, a file's tests in one of them: what a file sets up is set up once.
exec python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder "$@"
