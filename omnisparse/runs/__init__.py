"""Room: runs. Run directories: their files, their record, and the lock of a training."""
