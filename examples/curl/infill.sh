#!/usr/bin/env bash
# The request that llama.vim and llama.vscode send: three drafts between a prefix and a suffix.
set -euo pipefail

curl --silent --show-error --fail-with-body "${SUPERDRAFT_URL:-http://127.0.0.1:8000}/infill" \
    --header "Authorization: Bearer ${SUPERDRAFT_API_KEY:-none}" \
    --data '{"input_prefix": "def add(a, b):\n", "prompt": "    return a", "input_suffix": "\n", "n_cmpl": 3, "n_predict": 8}'
