"""Which examples to draw. Knows ids, classes and counts; no images, no networks, no torch."""
