"""What is logged: our own packages from INFO on, libraries from WARNING on."""

import logging
import sys

OWN = ("harness", "svll", "launch", "__main__")  # jobs are started as modules, by `python -m`
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def log_own_packages(handler: logging.Handler | None = None) -> None:
    """Log to a handler, if given and if there is none yet, and set the levels."""
    if handler is not None:
        logging.basicConfig(handlers=[handler], level=logging.WARNING)
    for name in OWN:
        logging.getLogger(name).setLevel(logging.INFO)


def announce_torch(log: logging.Logger) -> None:
    """Log that torch is about to be imported, if it is not yet: nothing else is said meanwhile."""
    if "torch" not in sys.modules:
        log.info("loading torch and other libraries: 5 to 20 s, more from a slow disk")
