#!/usr/bin/env bash
# Three drafts in the format of the OpenAI completions API.
set -euo pipefail

curl --silent --show-error --fail-with-body "${SUPERDRAFT_URL:-http://127.0.0.1:8000}/v1/completions" \
    --header "Authorization: Bearer ${SUPERDRAFT_API_KEY:-none}" \
    --data '{"model": "superdraft", "prompt": "Thank you for your email. I will", "n": 3, "max_tokens": 10}'
