#!/usr/bin/env bash
# Requests drafts, then reports that the first one was accepted.
set -euo pipefail

url="${SUPERDRAFT_URL:-http://127.0.0.1:8000}"
key="Authorization: Bearer ${SUPERDRAFT_API_KEY:-none}"
id=$(curl --silent --show-error --fail-with-body "$url/v1/drafts" --header "$key" --data '{"prompt": "Best reg"}' |
    grep -o 'drafts-[0-9a-f]*' | head -n 1)
curl --silent --show-error --fail-with-body "$url/v1/feedback" --header "$key" \
    --data '{"completion_id": "'"$id"'", "event": "accepted", "index": 0}'
