"""Room: pipeline. One file per verb; it combines the other rooms."""
