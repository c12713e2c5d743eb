"""What drafts are judged on: prompts, gaps, word lists."""
