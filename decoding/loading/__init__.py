"""Models on disk: finding, fetching, converting and loading them."""
