"""The patch bank: normalized volumes + an index of voxels per tissue class."""
