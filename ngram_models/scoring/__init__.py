"""N-gram models as scorers of next tokens."""
