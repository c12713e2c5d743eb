"""The HTTP APIs, one module or folder per wire: each parses requests and renders answers."""
