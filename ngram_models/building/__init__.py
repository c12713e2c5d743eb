"""Building n-gram models from text: corpora, shards, KenLM's programs."""
