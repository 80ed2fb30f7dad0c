"""Sessions, caches and generation loops for lowered programs."""
