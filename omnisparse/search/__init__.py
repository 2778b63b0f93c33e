"""Search without retraining: what is measured, on what, and which subnets to try next."""
