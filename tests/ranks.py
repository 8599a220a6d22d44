"""One rank of `conftest.Ranks`: reads calls from stdin, a line each, and answers on stdout."""

import gc
import importlib.util
import json
import os
import sys
import traceback
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.base.caches import RARELY
from harness.training.ranks import init_ranks

gc.set_threshold(*RARELY)


@cache
def load(file: str) -> ModuleType:
    """Import a test module by its path; test folders are no packages."""
    spec = importlib.util.spec_from_file_location(file.rpartition("/")[2][:-3], file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answer(call: dict[str, Any]) -> dict[str, Any]:
    """Return what the called function returns, or how it failed."""
    from deepspeed.runtime import torch_autocast  # only after init_ranks chose the device

    # a global of DeepSpeed 0.19.8: one fp16 engine changes all later ones of the process
    torch_autocast.TORCH_AUTOCAST_INITIALIZED = False
    try:
        return {"result": getattr(load(call["file"]), call["function"])(**call["arguments"])}
    except Exception:
        return {"failure": traceback.format_exc()}


def main() -> None:
    """Answer until stdin ends. What libraries print goes to stderr, not between the answers."""
    sys.path.append(str(Path(__file__).parents[1]))  # test modules import one another
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    init_ranks()
    for line in sys.stdin:
        answers.write(json.dumps(answer(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":  # drawing a world spawns processes, which import this file
    main()
