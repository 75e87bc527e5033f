#!/usr/bin/env bash
# Sets itself up from nothing and runs the tests: bash launch/test.sh [arguments of pytest]
source "$(dirname "$0")/setup.sh" test
ruff check .
ruff format --check .
exec python -m pytest "$@"
