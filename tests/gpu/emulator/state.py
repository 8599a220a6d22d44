"""What the emulator knows: its GPUs, the waits of the host, copies that are not finished."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).parents[3]
OURS = tuple(f"{ROOT / part}/" for part in ("harness", "svll", "launch"))
HERE = str(Path(__file__).parent)


class GpuError(RuntimeError):
    """What a GPU would refuse."""


@dataclass(frozen=True)
class Place:
    """A line of the project, and the function of DeepSpeed in between if there is one."""

    file: str  # from the root of the project
    line: int
    function: str
    deepspeed: str = ""

    def __str__(self) -> str:
        through = f" through {self.deepspeed}" if self.deepspeed else ""
        return f"{self.file}:{self.line} {self.function}{through}"


@dataclass(frozen=True)
class Wait:
    """A time at which the host waited for the GPU."""

    kind: str  # such as "item" or "copy to the CPU"
    place: Place
    step: int  # optimizer steps of this process before it

    def __str__(self) -> str:
        return f"{self.kind} at {self.place}"

    @property
    def name(self) -> str:
        """The wait without its line, which changes: "kind file function", perhaps DeepSpeed's."""
        parts = (self.kind, self.place.file, self.place.function, self.place.deepspeed)
        return " ".join(part for part in parts if part)


@dataclass
class Emulator:
    """The GPUs of this process, and what was recorded since they were installed."""

    devices: int
    current: int = 0
    step: int = 0  # optimizer steps so far
    waits: list[Wait] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)
    """The errors on mixed devices that were raised, caught or not."""
    in_backward: int = 0
    pinned: dict[int, Tensor] = field(default_factory=dict)  # by address; kept, so none is reused
    late: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)
    """Copies to the CPU that nobody waited for: (number, target, value)."""
    sent: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Pinned tensors that the GPU may still read, and their contents when they were sent."""
    copies: int = 0

    def waited(self, kind: str, copies: int | None = None) -> None:
        """Record that the host waits for all work of the GPU, or for the first copies."""
        self.waits.append(Wait(kind, place(), self.step))
        self.finish(self.copies if copies is None else copies)

    def finish(self, copies: int) -> None:
        """Finish the copies to the CPU that began first, and check what was sent to the GPU."""
        for _, target, value in [copy for copy in self.late if copy[0] <= copies]:
            with torch._C.DisableTorchFunctionSubclass():
                target.copy_(value)
        self.late = [copy for copy in self.late if copy[0] > copies]
        for source, content in self.sent:
            with torch._C.DisableTorchFunctionSubclass():
                if not ((source == content) | source.isnan()).all():
                    raise GpuError(f"pinned memory {list(source.shape)} was overwritten before the "
                                   f"GPU had read it; noticed at {place()}")
        self.sent.clear()

    def index_of(self, device: torch.device | int | str | None) -> int:
        """Return a device's number; raises GpuError unless it is the GPU of this rank."""
        if isinstance(device, int):
            device = torch.device("cuda", device)
        named = self.current if device is None else torch.device(device).index
        number = self.current if named is None else named
        if not 0 <= number < self.devices:
            raise GpuError(f"CUDA error: invalid device ordinal: cuda:{number}, this process sees "
                           f"{self.devices}, at {place()}")
        return number


INSTALLED: list[Emulator] = []
"""The emulator of this process, if there is one."""


def place() -> Place:
    """Return the innermost line of the project that is being carried out."""
    deepspeed, frame = "", sys._getframe(1)
    while frame is not None:
        file, code = frame.f_code.co_filename, frame.f_code
        if file.startswith(OURS):
            where = str(Path(file).relative_to(ROOT))
            return Place(where, frame.f_lineno, code.co_qualname.rpartition(">.")[2], deepspeed)
        if "/deepspeed/" in file and not deepspeed:
            deepspeed = f"{Path(file).stem}.{code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(HERE):
        frame = frame.f_back
    return Place(Path(frame.f_code.co_filename).name, frame.f_lineno, frame.f_code.co_name)
