#!/usr/bin/env bash
# Install the packages of policies that contradict ours, each into an environment of its own:
#
#     ./setup_policy.sh lerobot      lerobot 0.4.4 with torch, into .venvs/lerobot (2 GB, 8 GB where torch comes with CUDA)
#
# `server.py policy --policy lerobot` then starts the policy's process with it. Another environment that has the packages,
# such as one in which the policy was trained, is named by --policy_python and needs nothing from here.
set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"

case ${1:-} in
    lerobot) lock=requirements/peers/lerobot.lock.txt ;; # the same that its client and lerobot-eval are tested with
    *)
        echo "usage: ./setup_policy.sh lerobot" >&2
        exit 2
        ;;
esac
mkdir -p .venvs
./setup_environment.sh ".venvs/$1" "$lock"
