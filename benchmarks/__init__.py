"""Benchmarks, one file a question. Each prints a table and JSON with the machine, the versions and the settings."""
