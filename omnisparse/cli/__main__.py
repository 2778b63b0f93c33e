"""``python -m omnisparse.cli`` is the command ``omnisparse``."""

from omnisparse.cli.main import main

main()
