"""Notes which step through which layout a test is, for the matrix at the end."""

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    step = getattr(getattr(item, "function", None), "step", None)
    if step is not None and isinstance(item, pytest.Function):
        item.user_properties.append(("cell", (item.callspec.params["layout"], step)))
