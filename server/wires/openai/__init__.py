"""OpenAI's wire: `POST /v1/completions` and `GET /v1/models`."""
