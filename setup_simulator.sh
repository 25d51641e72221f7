#!/usr/bin/env bash
# Add a family of simulators to .venv, or make it an environment of its own:
#
#     ./setup_simulator.sh libero [ENVIRONMENT]
#
# In .venv `client.py evaluate --simulator libero` finds it at once. An environment of its own is for a .venv that
# holds robosuite 1.5, with which LIBERO does not run; the simulator server starts LIBERO's processes with it then:
#
#     ./setup_simulator.sh libero .venvs/libero
#     python server.py simulator --simulator_python libero=.venvs/libero/bin/python
set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"

family=${1:-} venv=${2:-.venv}
case $family in
    libero) ;;
    *)
        echo "usage: ./setup_simulator.sh libero [ENVIRONMENT]" >&2
        exit 2
        ;;
esac

if [[ $venv == .venv ]]; then
    ./setup_environment.sh
else
    mkdir -p -- "$(dirname -- "$venv")"
fi
./setup_environment.sh "$venv" "requirements/$family.lock.txt"

# What is missing yet, and where to get it. No failure: the tests that need the files say so themselves.
MUJOCO_GL=${MUJOCO_GL:-osmesa} "$venv/bin/python" -m benchmark.libero || true
