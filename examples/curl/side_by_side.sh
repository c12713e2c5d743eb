#!/usr/bin/env bash
# One prompt with superposed decoding and with sampling: compare `usage.forward_rows` and `timings.decode_ms`.
set -euo pipefail

for strategy in superposed sample; do
    curl --silent --show-error --fail-with-body "${SUPERDRAFT_URL:-http://127.0.0.1:8000}/v1/drafts" \
        --header "Authorization: Bearer ${SUPERDRAFT_API_KEY:-none}" \
        --data '{"prompt": "The weather today is", "num_drafts": 3, "max_tokens": 10, "strategy": "'"$strategy"'"}'
    echo
done
