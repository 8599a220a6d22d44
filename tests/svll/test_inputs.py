"""What a run starts from."""

from svll.config import EngineConfig
from svll.inputs import set_blocks
from svll.models.clip import load_clip
from tests.gpu.emulator import emulated


def test_blocks_are_compiled_on_gpus_only_unless_set_otherwise() -> None:
    clip = load_clip("svll-tiny", None, height=32, width=16, stride=8)
    encoders = clip.image, clip.text
    with emulated():
        set_blocks(clip, EngineConfig(recompute=True))
        assert len({encoder.compiler for encoder in encoders} - {None}) == 2
        assert [encoder.recompute for encoder in encoders] == [True, True]
        set_blocks(clip, EngineConfig(compile=None))
        assert {encoder.compiler for encoder in encoders} == {None}
    set_blocks(clip, EngineConfig())
    assert {encoder.compiler for encoder in encoders} == {None}
