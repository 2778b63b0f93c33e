"""Evaluation: word errors with intervals, running a model on a corpus, tables and plots."""
