"""Observability: metrics, statistics, logs and traces."""
