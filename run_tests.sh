#!/usr/bin/env bash
# Set .venv up as start_policy_server.sh does, with every family of simulators, Ray and MkDocs, and each peer's client in
# .venvs; then lint, check types, build the documentation and run every test, three at a time: most of them wait for
# processes that start. Arguments go to pytest: ./run_tests.sh tests/unit -k framing; -n 0 runs one after the other.
set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"

./setup_simulator.sh all
./setup_peers.sh all
./setup_environment.sh .venv requirements/docs.lock.txt
./setup_environment.sh .venv requirements/dashboard.lock.txt
./setup_environment.sh .venv requirements/otel.lock.txt
# A browser for the tests of pages, and promtool, of the package prometheus, for those of metrics and alerts.
packages=()
command -v chromium > /dev/null || packages+=(chromium)
command -v promtool > /dev/null || packages+=(prometheus)
if ((${#packages[@]})); then
    export DEBIAN_FRONTEND=noninteractive
    if [[ $EUID -ne 0 ]] || ! { apt-get -qq update && apt-get -qq install -y --no-install-recommends "${packages[@]}"; } > /dev/null; then
        echo "some tests need ${packages[*]}: sudo apt-get update && sudo apt-get install -y ${packages[*]}" >&2
        exit 1
    fi
fi
.venv/bin/python -m ruff check .
.venv/bin/python -m mypy
NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict --quiet
exec .venv/bin/python -m pytest --numprocesses 3 --dist worksteal "$@"
