"""``python -m tersor`` is the ``tersor`` command."""

from .cli import main

main()
