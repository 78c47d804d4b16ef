"""The training loop from batches to checkpoints, with its parts."""
