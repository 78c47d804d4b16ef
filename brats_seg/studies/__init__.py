"""Grids of trainings -> tables: experiments on scans and studies of images, in the same steps."""
