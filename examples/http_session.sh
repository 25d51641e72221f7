#!/usr/bin/env bash
# One episode over HTTP with curl: reset, ten steps, an image, the end of the session.
#
#     ./http_session.sh [URL [SIMULATOR TASK ACTION]]
set -euo pipefail
url=${1:-http://localhost:8080}
simulator=${2:-robosuite} task=${3:-Lift} action=${4:-[0.5, 0, 0, 0, 0, 0, -1]}

reply=$(curl --fail-with-body -sS -X POST "$url/reset" -d "{\"simulator\": \"$simulator\", \"task\": \"$task\", \"seed\": 0}")
session=$(sed -E 's/.*"session": ?"([^"]+)".*/\1/' <<< "$reply")
for step in {1..10}; do
    curl --fail-with-body -sS -o step.json -X POST "$url/step" -H "X-Robowire-Session: $session" \
        -d "{\"action\": $action}"
done
curl --fail-with-body -sS -o view.png "$url/render?session=$session"
curl --fail-with-body -sS -X DELETE "$url/session?session=$session" > /dev/null
echo "$step steps; the last reply is in step.json, an image in view.png"
