"""One module for each benchmark; how to measure and what to measure on are shared."""
