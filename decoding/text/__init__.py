"""Text and tokens: tokenizer, token healing, gaps in a text, trimming for display."""
