"""Observability: metrics, statistics and logs."""
