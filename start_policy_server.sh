#!/usr/bin/env bash
# Start the policy server: ./start_policy_server.sh --port 5000. The flags are those of `server.py policy --help`.
# The first start sets .venv up (minutes), and the first with --dashboard adds Gradio to it; later ones take milliseconds.
# Works from any folder, and paths in flags are relative to it.
set -euo pipefail
root=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")

"$root/setup_environment.sh"
for flag in "$@"; do
    if [[ $flag == --dashboard ]]; then
        "$root/setup_environment.sh" .venv requirements/dashboard.lock.txt
    fi
done
exec "$root/.venv/bin/python" "$root/server.py" policy "$@"
