"""The edge of the server: HTTP limits, host names, API keys, rate limits, and errors as HTTP answers."""
