"""Room: sweeps. Sweep files in the format of W&B, and running them without a server."""
