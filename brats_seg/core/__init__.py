"""Basic parts for all other packages: runtime, processes, compiled kernels, statistics, files."""
