#!/usr/bin/env bash
# Add families of simulators to .venv, or make one an environment of its own:
#
#     ./setup_simulator.sh libero|gymnasium|driving|ray [ENVIRONMENT]
#     ./setup_simulator.sh all
#
# In .venv `client.py evaluate --simulator libero` finds it at once. An environment of its own is for a .venv that
# holds robosuite 1.5, with which LIBERO does not run; the simulator server starts LIBERO's processes with it then:
#
#     ./setup_simulator.sh libero .venvs/libero
#     python server.py simulator --simulator_python libero=.venvs/libero/bin/python
#
# ray is no simulator: it runs a fleet of them on a cluster.
set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"

asked=${1:-} venv=${2:-.venv}
case $asked in
    libero | gymnasium | driving | ray) families=("$asked") ;;
    all) families=(libero gymnasium driving ray) ;;
    *)
        echo "usage: ./setup_simulator.sh libero|gymnasium|driving|ray|all [ENVIRONMENT]" >&2
        exit 2
        ;;
esac

if [[ $venv == .venv ]]; then
    ./setup_environment.sh
else
    mkdir -p -- "$(dirname -- "$venv")"
fi
for family in "${families[@]}"; do
    ./setup_environment.sh "$venv" "requirements/$family.lock.txt"
done

if [[ " ${families[*]} " == *" libero "* ]]; then
    # What is missing yet, and where to get it. No failure: the tests that need the files say so themselves.
    MUJOCO_GL=${MUJOCO_GL:-osmesa} "$venv/bin/python" -m benchmark.libero || true
fi
