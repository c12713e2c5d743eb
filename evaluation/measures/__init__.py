"""Measures of quality and their confidence intervals."""
