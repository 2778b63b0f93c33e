"""Room: runs. What a run directory is: its files, its record, who may write it."""
