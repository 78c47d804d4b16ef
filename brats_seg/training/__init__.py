"""One loop from batches to checkpoints, and what it needs."""
