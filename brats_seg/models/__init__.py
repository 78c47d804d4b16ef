"""Networks by name, and the losses they are trained with."""
