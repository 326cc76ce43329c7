"""Access to the videos of a split: one `Reader` (see `data.clips`) for each kind of storage."""
