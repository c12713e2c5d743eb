#!/usr/bin/env bash
# The same prompt superposed and sampled: compare `usage.forward_rows` and `timings.decode_ms` of the two answers.
set -euo pipefail

for strategy in superposed sample; do
    curl --silent --show-error --fail-with-body "${SUPERDRAFT_URL:-http://127.0.0.1:8000}/v1/drafts" \
        --header "Authorization: Bearer ${SUPERDRAFT_API_KEY:-none}" \
        --data '{"prompt": "The weather today is", "num_drafts": 3, "max_tokens": 10, "strategy": "'"$strategy"'"}'
    echo
done
