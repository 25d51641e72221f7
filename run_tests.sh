#!/usr/bin/env bash
# Set .venv up as start_policy_server.sh does, with every family of simulators and Ray beside it; then lint, check types
# and run every test.
# Arguments go to pytest: ./run_tests.sh tests/unit -k framing
set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"

./setup_simulator.sh all
.venv/bin/python -m ruff check .
.venv/bin/python -m mypy --strict robowire
exec .venv/bin/python -m pytest "$@"
