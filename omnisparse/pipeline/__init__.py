"""Room: pipeline. One file per verb; here the other rooms are joined."""
