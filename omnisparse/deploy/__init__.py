"""Deployment: recognising recordings with a trained or extracted model."""
