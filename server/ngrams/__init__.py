"""The n-gram models of a server: which ones it has and which one a request gets."""
