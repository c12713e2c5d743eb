"""`superdraft ngram`: commands for n-gram models."""
