"""Room: cli. One file per verb: parse, call one function, show."""

from omnisparse.cli.main import main

__all__ = ["main"]
