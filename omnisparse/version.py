"""The version of the package, importable without anything else."""

__version__ = "0.1.0"

TESTED_PAIRS = (("2.11.0", "2.11.0"), ("2.14.1", "2.11.1"), ("2.15.0", "2.11.1"))
"""torch and torchaudio that load together and pass the tests; the first is that of `make setup`."""
