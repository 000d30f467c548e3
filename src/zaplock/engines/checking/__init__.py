"""Every interleaving of a configuration, or a sample of them."""
