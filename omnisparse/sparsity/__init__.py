"""Sparsity: budgets, rankings, masks, and the supernet made of them. Independent of speech."""
