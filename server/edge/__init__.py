"""The edge of the server: limits of connections and callers, what pages may send, API keys, errors as HTTP answers."""
