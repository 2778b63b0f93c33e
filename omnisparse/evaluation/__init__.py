"""Evaluation: word errors with their intervals, running a model over a corpus, tables and plots."""
