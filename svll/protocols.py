"""The rules by which a test set is ranked, by name; imports nothing, as configurations use it.

The rule of a dataset is its own (`Dataset.protocol`), unless `evaluation.protocol` names another.
It is kept in feature files, and all that reads those ranks by it.
"""

from typing import Literal, get_args

from harness.errors import UserError

Protocol = Literal["cross_camera", "other_cameras", "all_gallery", "random_gallery"]
PROTOCOLS: dict[str, str] = {
    "cross_camera": "gallery images of the query's own identity and camera are left out",
    "other_cameras": "all gallery images of the query's own camera are left out",
    "all_gallery": "no gallery image but the query's own is left out",
    "random_gallery": "one image per identity is the gallery, the others are queries; "
    "the mean of ten draws",
}
"""What each leaves out of the gallery."""
assert set(PROTOCOLS) == set(get_args(Protocol))


def check_protocol(name: str) -> None:
    """Raise UserError for a name that is no protocol's."""
    if name not in PROTOCOLS:
        raise UserError(f"no protocol {name!r}; choose one of {', '.join(PROTOCOLS)}")
