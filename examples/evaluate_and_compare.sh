#!/usr/bin/env bash
# Evaluate two policies of your own on a simulator of your own, and compare the results. Takes a few seconds.
#
#     ./evaluate_and_compare.sh [OUTPUT_DIR]
set -euo pipefail
output=$(realpath -m -- "${1:-outputs/compare}")
cd -- "$(dirname -- "$(readlink -f -- "$0")")" # my_policy and my_simulator are found in the current folder
python=${PYTHON:-../.venv/bin/python}
port=${PORT:-5000}

evaluate() { # evaluate NAME --policy POLICY [FLAGS]: serve the policy while it is evaluated
    local name=$1
    shift
    "$python" ../server.py policy --host 127.0.0.1 --port "$port" "$@" &
    trap 'kill %% 2> /dev/null || true' EXIT
    "$python" ../client.py evaluate --address "127.0.0.1:$port" --wait_s 30 --record_video off \
        --simulator my_simulator:make_simulator --task reach --num_episodes 20 --output_dir "$output/$name"
    kill %%
    wait
}

evaluate chunks_of_8 --policy my_policy:make_policy
evaluate chunks_of_2 --policy my_policy:make_policy --chunk_size 2
"$python" ../client.py compare "$output/chunks_of_8" "$output/chunks_of_2"
