"""Files that stage 1 leaves are read, or named."""

import pytest

from harness.base.errors import UserError
from harness.base.files import write_json
from harness.runs.run import Run
from svll.base.run_files import TAKEN, taken_epochs


def test_epochs_that_another_run_trained_are_read_and_a_damaged_file_is_named(tmp_path):
    run = Run(tmp_path)
    assert taken_epochs(run) == 0
    write_json(tmp_path / TAKEN, {"of": "x", "epochs": 4})
    assert taken_epochs(run) == 4
    for odd in ({}, [], 5, {"epochs": None}):
        write_json(tmp_path / TAKEN, odd)
        with pytest.raises(UserError, match=r"stage1\.json: cannot be read"):
            taken_epochs(run)
