"""The command line `x2l`: options in, pipeline calls, formatted output."""

from videox2l.cli.app import main

__all__ = ["main"]
