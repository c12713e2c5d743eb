"""The HTTP APIs, one module or folder per wire. Each parses requests, calls `Service`, and renders answers."""
