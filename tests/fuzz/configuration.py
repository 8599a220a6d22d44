"""What users write as configuration: recipes."""

from pathlib import Path

from hypothesis import strategies as st

from harness.config.build import build
from harness.config.recipes import read_recipe
from harness.config.values import to_yaml
from svll.config import RECIPES, Config
from tests.fuzz.inputs import damaged
from tests.fuzz.trying import Target


def read(content: bytes, folder: Path) -> None:
    """Read a recipe; what it resolves to reads back as the same configuration."""
    (folder / "recipe.yaml").write_bytes(content)
    config = build(Config, read_recipe(folder / "recipe.yaml", Config))
    (folder / "again.yaml").write_text(to_yaml(config), "utf-8")
    assert build(Config, read_recipe(folder / "again.yaml", Config)) == config


def recipes() -> st.SearchStrategy[bytes]:
    return damaged((RECIPES / "synthetic_tiny.yaml").read_bytes())


TARGETS = [Target("recipes", recipes(), read)]
