"""Loading of models: finding, fetching, converting and reading them."""
