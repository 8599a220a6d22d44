"""How the trials of a sweep become arrays."""

import dataclasses
from types import ModuleType
from typing import Any, cast

import pytest

from harness.cluster import array_plan
from harness.cluster.place import Place, Room


@pytest.mark.parametrize("at_once", [None, 1, 2, 3, 8])
@pytest.mark.parametrize("trials", [1, 4, 11])
def test_arrays_share_what_may_run_at_once_and_each_waits_for_one_of_its_own_share(
    toy: ModuleType, tmp_path: Any, at_once: int | None, trials: int
) -> None:
    @dataclasses.dataclass
    class Small:
        """A place whose arrays have at most two jobs."""

        def room(self, sweep: Any, limit: Any, trials_per_gpu: int = 1) -> Room:
            return Room(sweep.resources, most_jobs=2, at_once=at_once, after=["7"])

    points = [n / 20 for n in range(1, trials + 1)]
    sweep = toy.make_sweep(tmp_path, {"work.quality": {"grid": points}})
    arrays = list(array_plan.submissions(sweep, sweep.trials, cast(Place, Small()), None))
    assert [trial for array in arrays for trial in array.trials] == [*sweep.trials]
    assert all(len(array.trials) == 2 for array in arrays[:-1])
    assert all([*array.after] == ["7"] for array in arrays)
    first = [array for array in arrays if array.follows is None]
    if at_once is None:
        assert first == arrays
        assert not any("at_once" in array.options for array in arrays)
        return
    shares = [array.options["at_once"] for array in arrays]
    assert min(shares) >= 1
    assert sum(array.options["at_once"] for array in first) == at_once
    followed = [array.follows for array in arrays if array.follows is not None]
    assert len(followed) == len(set(followed)), "no share is used twice"
    assert [shares[n] for n in followed] == shares[len(first):]
