#!/usr/bin/env bash
# Install families of simulators into .venv, or one into an environment of its own:
#
#     ./setup_simulator.sh aloha|libero|gymnasium|driving|ray [ENVIRONMENT]
#     ./setup_simulator.sh all
#
# In .venv `client.py evaluate --simulator libero` finds it at once. An environment of its own is for a .venv that
# holds robosuite 1.5, with which LIBERO does not run; the simulator server starts LIBERO's processes with it then:
#
#     ./setup_simulator.sh libero .venvs/libero
#     python server.py simulator --simulator_python libero=.venvs/libero/bin/python
#
# ray is not a simulator: it runs a fleet of them on a cluster.
set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"

wanted=${1:-} venv=${2:-.venv}
case $wanted in
    aloha | libero | gymnasium | driving | ray) families=("$wanted") ;;
    all) families=(aloha libero gymnasium driving ray) ;;
    *)
        echo "usage: ./setup_simulator.sh aloha|libero|gymnasium|driving|ray|all [ENVIRONMENT]" >&2
        exit 2
        ;;
esac

if [[ $venv == .venv ]]; then
    ./setup_environment.sh
else
    mkdir -p -- "$(dirname -- "$venv")"
fi
number=0
for family in "${families[@]}"; do
    ((++number))
    ((${#families[@]} == 1)) || echo "set-up: family $number of ${#families[@]}: $family" >&2
    ./setup_environment.sh "$venv" "requirements/$family.lock.txt"
done

if [[ " ${families[*]} " == *" libero "* ]]; then
    # Prints what is missing, and where to get it. Not a failure: the tests that need the files report it themselves.
    MUJOCO_GL=${MUJOCO_GL:-osmesa} "$venv/bin/python" -m benchmark.libero || true
fi
