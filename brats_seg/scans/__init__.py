"""Scan files on disk: cases, volumes, labels and layouts."""
