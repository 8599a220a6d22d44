"""Files that cannot be decoded are found and named."""

from harness.images.decoding import check_images


def test_every_unreadable_file_is_named_with_its_reason(photos, broken):
    paths = photos * 2
    for place, path in zip((0, 1, 2, 70, 71, 100, 134), broken, strict=True):
        paths.insert(place, path)
    calls = []
    faults = check_images(paths, threads=2, progress=lambda *call: calls.append(call))
    assert faults == list(broken.items())
    assert calls == [(64, 135), (128, 135), (135, 135)]
    assert check_images(photos, threads=1) == []
    assert check_images([], threads=1) == []
