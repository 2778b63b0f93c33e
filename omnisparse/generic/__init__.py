"""Supernets of any module: a training step for your own loop, extraction, packed files."""
