"""Trained networks that come with the package: a folder each, made by `tools/make_starter.py`, read by
`brats_seg.models.packaged`.
"""
