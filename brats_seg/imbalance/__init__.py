"""The heart: knows ids, classes and counts; no images, no networks, no torch."""
