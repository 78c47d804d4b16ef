"""Scans as hospitals have them: DICOM import, registration to a common grid, and export of label maps for
viewers.
"""
