"""Evaluation protocols by name. This file imports little, since configurations use it.

A test set is ranked by its dataset's protocol (`Dataset.protocol`), unless `evaluation.protocol`
names another. Feature files keep the protocol for everything that reads them.
"""

from typing import Literal, get_args

from harness.base.errors import UserError

Protocol = Literal["cross_camera", "other_cameras", "all_gallery", "random_gallery"]
PROTOCOLS: dict[str, str] = {
    "cross_camera": "gallery images of the query's own identity and camera are left out",
    "other_cameras": "all gallery images of the query's own camera are left out",
    "all_gallery": "no gallery image but the query's own is left out",
    "random_gallery": "one image per identity is the gallery, the others are queries; "
    "the mean of ten draws",
}
"""What each protocol leaves out of the gallery."""
assert set(PROTOCOLS) == set(get_args(Protocol))


def check_protocol(name: str) -> None:
    """Raise UserError for an unknown protocol."""
    if name not in PROTOCOLS:
        raise UserError(f"no protocol {name!r}; choose one of {', '.join(PROTOCOLS)}")


def protocol_in_force(requested: str | None, own: str, where: str, *, is_one_set: bool) -> str:
    """Return the requested protocol, or else the test set's own.

    is_one_set: whether query and gallery are the same images. Raises UserError when they are not
    and random_gallery, which would rank the gallery alone, is requested.
    """
    if requested == "random_gallery" != own and not is_one_set:
        raise UserError(f"{where}: the protocol random_gallery draws queries and gallery from one "
                        f"set of images; here they are two sets, tested by {own}: choose one of "
                        "cross_camera, other_cameras, all_gallery")
    return requested or own
