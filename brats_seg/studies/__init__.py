"""Grids of trainings -> tables: experiments on scans and studies of images, on one spine."""
