"""``python -m edgevit``."""

from edgevit.cli.app import main

main()
