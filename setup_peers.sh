#!/usr/bin/env bash
# Install the client packages of peers, whose wires the frontends serve, each into an environment of its own:
#
#     ./setup_peers.sh openpi      into .venvs/openpi, from requirements/peers/openpi.lock.txt
#     ./setup_peers.sh all         every peer but those of several gigabytes, which are named by hand
#
# Only tests and measurements need them: tests/peers/ runs a peer's own client in its environment. Their pins contradict
# ours and each other's (openpi-client wants numpy < 2), so none of them enters .venv.
set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"

large=(lerobot)  # torch

peers=()
for lock in requirements/peers/*.lock.txt; do
    name=${lock##*/}
    peers+=("${name%.lock.txt}")
done

wanted=${1:-}
if [[ $wanted == all ]]; then
    chosen=()
    for peer in "${peers[@]}"; do
        [[ " ${large[*]} " == *" $peer "* ]] || chosen+=("$peer")
    done
elif [[ -n $wanted && " ${peers[*]} " == *" $wanted "* ]]; then
    chosen=("$wanted")
else
    echo "usage: ./setup_peers.sh all|NAME, the names being: ${peers[*]}" >&2
    exit 2
fi

mkdir -p .venvs
number=0
for peer in "${chosen[@]}"; do
    ((++number))
    ((${#chosen[@]} == 1)) || echo "set-up: peer $number of ${#chosen[@]}: $peer" >&2
    ./setup_environment.sh ".venvs/$peer" "requirements/peers/$peer.lock.txt"
done
