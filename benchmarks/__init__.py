"""Benchmarks, one per file. Each prints tables or JSON with the machine, the versions and the settings."""
