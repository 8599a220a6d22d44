"""An emulated GPU, and a drawn benchmark to run on."""

from collections.abc import Iterator

import pytest

from svll.world.world import World, write_world
from tests.gpu.emulator import Emulator, emulated


@pytest.fixture
def gpu() -> Iterator[Emulator]:
    """One emulated GPU in this process."""
    with emulated() as emulator:
        yield emulator


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A drawn benchmark of few images."""
    return str(write_world(World(6, 4, shots=2), tmp_path_factory.mktemp("drawn") / "world"))
