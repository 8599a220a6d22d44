"""Our own packages are logged, libraries only when they warn."""

import io
import logging

import pytest

from harness.cluster.rank_processes import log_to_stderr

LIBRARIES = ("compilers.C.base", "matplotlib", "numba.core", "httpx", "torch._inductor", "wandb")


def test_a_job_logs_our_own_packages_and_of_libraries_only_warnings(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    root, stderr = logging.getLogger(), io.StringIO()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    monkeypatch.setattr("sys.stderr", stderr)
    log_to_stderr()
    for name in (*LIBRARIES, "harness.x", "svll.y", "__main__", "root"):
        logging.getLogger(None if name == "root" else name).info("from %s", name)
    logging.getLogger("httpx").warning("a warning")
    said = [line.split(" ", 2)[2] for line in stderr.getvalue().splitlines()]
    assert said == ["INFO harness.x: from harness.x", "INFO svll.y: from svll.y",
                    "INFO __main__: from __main__", "WARNING httpx: a warning"]
