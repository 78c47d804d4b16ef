"""Networks by name, and the losses that train them."""
