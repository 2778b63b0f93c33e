"""Room: cli. One file per verb: parse options, call one function, show the result."""

from omnisparse.cli.main import main

__all__ = ["main"]
