"""The knobs stand in `core.config`, and how they are read in `core.settings`."""
