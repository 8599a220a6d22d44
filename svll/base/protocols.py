"""The rules by which a test set is ranked, by name; imports nothing, as configurations use it.

The rule of a dataset is its own (`Dataset.protocol`), unless `evaluation.protocol` names another.
It is kept in feature files, and all that reads those ranks by it.
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
"""What each leaves out of the gallery."""
assert set(PROTOCOLS) == set(get_args(Protocol))


def check_protocol(name: str) -> None:
    """Raise UserError for a name that is no protocol's."""
    if name not in PROTOCOLS:
        raise UserError(f"no protocol {name!r}; choose one of {', '.join(PROTOCOLS)}")


def protocol_in_force(asked: str | None, own: str, where: str, *, is_one_set: bool) -> str:
    """Return the protocol that was asked for, or a test set's own one.

    is_one_set: whether query and gallery are the same images. Raises UserError where they are not,
    and random_gallery, which would rank the gallery alone, is asked for.
    """
    if asked == "random_gallery" != own and not is_one_set:
        raise UserError(
            f"{where}: the protocol random_gallery draws queries and gallery from one set of "
            f"images; here they are two sets, tested by {own}: choose one of "
            "cross_camera, other_cameras, all_gallery"
        )
    return asked or own
