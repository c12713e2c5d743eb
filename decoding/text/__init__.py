"""Text and tokens: the tokenizer, token healing, gaps in a text, trimming for display."""
