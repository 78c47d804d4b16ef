"""What everything stands on: runtime, processes, compiled kernels, statistics, files."""
