"""Input size and stride are found by the number of positions, or given."""

import pytest

from harness.base.errors import UserError
from svll.models.weights.input_size import USUAL_SIZES, GivenSize, InputSize


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (128, (256, 128, 16)), (210, (256, 128, 12)), (162, (256, 128, 14)),
        (256, (256, 256, 16)), (441, (256, 256, 12)),
        (192, (384, 128, 16)), (310, (384, 128, 12)),
        (288, (384, 192, 16)), (465, (384, 192, 12)),
        (196, (224, 224, 16)), (171, (256, 128, 13)),
    ],
)
def test_published_sizes_are_found_by_their_positions(
    tokens: int, expected: tuple[int, int, int]
) -> None:
    assert GivenSize("file").match(tokens, patch=16) == InputSize(*expected)


@pytest.mark.parametrize("size", USUAL_SIZES)
@pytest.mark.parametrize("stride", [16, 12])
def test_every_usual_size_is_found_if_its_stride_is_given(
    size: tuple[int, int], stride: int
) -> None:
    rows = len(range(0, size[0] - 15, stride))
    columns = len(range(0, size[1] - 15, stride))
    found = GivenSize("file", stride=stride).match(rows * columns, patch=16)
    assert found == InputSize(*size, stride)


def test_several_that_fit_are_listed_with_the_count() -> None:
    with pytest.raises(UserError) as caught:
        GivenSize("a.pth").match(324, patch=16)
    assert str(caught.value) == (
        "a.pth: has positions for 324 patches of 16 pixels, which fit 256x256 with stride 14 and "
        "224x224 with stride 12; give height, width and stride"
    )


def test_none_that_fits_lists_what_was_tried() -> None:
    with pytest.raises(UserError, match="131 patches of 16 pixels, which fit none of 256x128, "):
        GivenSize("a.pth").match(131, patch=16)


def test_what_is_asked_for_narrows_the_choice() -> None:
    assert GivenSize("f", stride=12).match(324, patch=16) == InputSize(224, 224, 12)
    assert GivenSize("f", height=256).match(324, patch=16) == InputSize(256, 256, 14)
    assert GivenSize("f", height=224, stride=15).match(196, patch=16) == InputSize(224, 224, 15)
    assert GivenSize("f", height=96, width=32).match(16, patch=16) == InputSize(96, 32, 11)
    with pytest.raises(UserError, match=r"128 patches .* none of 128x128 with stride 16"):
        GivenSize("f", height=128, width=128, stride=16).match(128, patch=16)
