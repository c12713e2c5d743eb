"""Scorers: next-token log-probabilities from n-gram models."""
