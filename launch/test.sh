#!/usr/bin/env bash
# Sets itself up from nothing and runs the tests: bash launch/test.sh [arguments of pytest]
export CRYJAX_EXTRAS=${CRYJAX_EXTRAS:-test}
source "$(dirname "$0")/setup.sh"
ruff check .
ruff format --check .
exec python -m pytest "$@"
