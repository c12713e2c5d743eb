#!/usr/bin/env bash
# Drafts as a stream: one event per decode step, then the final answer, then [DONE].
set -euo pipefail

curl --silent --show-error --fail-with-body --no-buffer "${SUPERDRAFT_URL:-http://127.0.0.1:8000}/v1/drafts" \
    --header "Authorization: Bearer ${SUPERDRAFT_API_KEY:-none}" \
    --data '{"prompt": "Once upon a time", "num_drafts": 3, "max_tokens": 8, "stream": true}'
