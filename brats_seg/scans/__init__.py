"""What lies on disk, and what it means."""
