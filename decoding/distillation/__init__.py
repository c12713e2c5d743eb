"""Texts sampled from a language model, for n-gram models distilled from it."""
