"""The commands of `superdraft lab eval`, and `superdraft lab tune`."""
