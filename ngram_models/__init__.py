"""N-gram models over token ids: building, storing and scoring them with KenLM."""
