"""These tests need Triton's interpreter from the first import on; ``test_triton.py`` starts them with it."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
