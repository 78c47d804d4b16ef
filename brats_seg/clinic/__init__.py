"""Scans as hospitals have them: DICOM in, a common grid, and label maps back to where they are looked at."""
