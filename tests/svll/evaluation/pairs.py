"""A query and a gallery from six arrays, as tests make them."""

from typing import Any

from svll.evaluation.pair import Pair, group_of


def pair_of(
    query: Any, gallery: Any, query_identities: Any, gallery_identities: Any, query_cameras: Any,
    gallery_cameras: Any,
) -> Pair:
    return Pair(
        group_of(query, query_identities, query_cameras),
        group_of(gallery, gallery_identities, gallery_cameras),
    )
