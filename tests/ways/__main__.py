"""Walk through every layout and print the matrix: `python -m tests.ways [words of pytest]`."""

import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    sys.exit(pytest.main(["-s", "-q", str(Path(__file__).parent), *sys.argv[1:]]))
