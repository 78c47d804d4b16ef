"""Names of files in the folder of a run."""

BEST, LAST, PHASE_1 = "checkpoint_best.pt", "checkpoint_last.pt", "checkpoint_phase1.pt"
"""The checkpoint to predict with, the newest one, and the one at the end of the first of two phases."""
TUNED = "tuned.yaml"
"""Prior correction, thresholds and clean-up for the best checkpoint."""
