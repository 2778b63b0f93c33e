"""Search without retraining: scores of subnets, the evaluation subset, and the search itself."""
