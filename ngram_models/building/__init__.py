"""Building n-gram models from text or token sequences with KenLM's programs."""
