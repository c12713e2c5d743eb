"""Test cases for drafts: prompts, gaps in source code."""
