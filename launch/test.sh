#!/usr/bin/env bash
# Sets up its environment, checks style and types, and runs the tests:
# bash launch/test.sh [arguments of pytest]
export CRYJAX_EXTRAS=${CRYJAX_EXTRAS:-test}
source "$(dirname "$0")/setup.sh"
ruff check .
ruff format --check .
# Some old packages have other types, or none.
[ -n "${CRYJAX_CONSTRAINTS:-}" ] || mypy
# What one test compiles is reused by the others and by later runs.
export CRYJAX_TEST_CACHE=${CRYJAX_TEST_CACHE:-$PWD/.pytest_cache/compiled}
# More threads would compete for the cores of two processes.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
# Two processes, all tests of a file in one: what a file sets up is set up once.
exec python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder "$@"
