"""Sparsity: budgets, rankings, masks, and the supernet they make. Knows nothing of speech."""
