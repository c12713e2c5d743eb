#!/usr/bin/env bash
# Three drafts for a half-typed word, with their scores and the amount of work.
set -euo pipefail

curl --silent --show-error --fail-with-body "${SUPERDRAFT_URL:-http://127.0.0.1:8000}/v1/drafts" \
    --header "Authorization: Bearer ${SUPERDRAFT_API_KEY:-none}" \
    --data '{"prompt": "Please let me kn", "num_drafts": 3, "max_tokens": 8, "single_line": true, "trim": "word"}'
