#!/usr/bin/env bash
# Start the policy server: ./start_policy_server.sh --port 5000. The flags are those of `server.py policy --help`.
# The first start sets .venv up (minutes); later ones begin at once. Works from any folder; paths in flags stay yours.
set -euo pipefail
root=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")

"$root/setup_environment.sh"
exec "$root/.venv/bin/python" "$root/server.py" policy "$@"
