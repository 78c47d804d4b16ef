"""A synthetic cohort that has the classes, the contrasts and the flaws of BraTS scans."""
