"""The TypeScript client: its sources, and the built modules that the server's page loads."""

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "client" / "typescript"
BUILT = ROOT / "server" / "static" / "client"
NODE = shutil.which("node")

needs_node = pytest.mark.skipif(NODE is None, reason="Node.js is not installed")
