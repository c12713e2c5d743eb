"""The edge of the server: HTTP limits, host names, API keys, rate limits, errors as HTTP answers."""
