#!/usr/bin/env bash
# Plot what latency costs a policy of your own, on the virtual clock, which waits for nothing.
#
#     ./latency_sweep.sh [OUTPUT_DIR]
set -euo pipefail
output=$(realpath -m -- "${1:-outputs/sweep}")
cd -- "$(dirname -- "$(readlink -f -- "$0")")" # my_policy and my_simulator are found in the current folder
python=${PYTHON:-../.venv/bin/python}
port=${PORT:-5000}

"$python" ../server.py policy --policy my_policy:make_policy --host 127.0.0.1 --port "$port" &
trap 'kill %% 2> /dev/null || true' EXIT
"$python" ../client.py sweep --address "127.0.0.1:$port" --wait_s 30 \
    --simulator my_simulator:make_simulator --task reach --num_episodes 10 \
    --latencies_ms 0,200,400 --aggregate_fn_names weighted_average --output_dir "$output"
