"""Which examples to draw. This package uses only ids, classes and counts: no images, no networks and no
torch.
"""
