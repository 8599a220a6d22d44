"""A GPU that is not there, for one test."""

from collections.abc import Iterator

import pytest

from harness.base.files import write_json
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


@pytest.fixture(scope="session")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a small CLIP with a ResNet."""
    from svll.models.clip import import_open_clip

    file = tmp_path_factory.mktemp("models") / "RN-tiny.json"
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    write_json(file, {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text})
    import_open_clip().add_model_config(file)
    return file.stem
