#!/usr/bin/env bash
# Start a fleet of two servers for a simulator of your own, look at it, add a third, stop it.
set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "$0")")" # my_simulator is found in the current folder
python=${PYTHON:-../.venv/bin/python}
port=${PORT:-5555}

"$python" ../server.py fleet --simulator my_simulator:make_simulator --num_services 2 --host 127.0.0.1 --port "$port" &
trap 'kill %% 2> /dev/null || true' EXIT
"$python" ../client.py ping --address "127.0.0.1:$port" --wait_s 60 --count 1
"$python" ../server.py fleet status --address "127.0.0.1:$port"
"$python" ../server.py fleet scale 3 --address "127.0.0.1:$port"
"$python" ../server.py fleet stop --address "127.0.0.1:$port"
wait
