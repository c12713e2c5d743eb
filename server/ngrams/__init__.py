"""The n-gram models of a server: those on disk, and the one that a request gets."""
