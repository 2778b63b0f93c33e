"""Room: comparison. Methods and sizes side by side: which rows, how measured, how shown."""
