"""A synthetic cohort that looks and fails like BraTS."""
