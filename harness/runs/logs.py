"""What is logged: our own packages and the experiment's from INFO on, libraries from WARNING on."""

import logging
import sys

OWN = {"harness", "svll", "launch", "__main__"}  # jobs are started as modules, by `python -m`
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def log_own_packages(handler: logging.Handler) -> None:
    """Have a handler pass what is logged here, and set our packages' levels."""
    handler.addFilter(is_logged)  # libraries that set their own level, such as submitit
    for name in (*OWN,):
        log_package(name)


def log_package(name: str) -> None:
    """Have a package logged from INFO on, as our own are: that of the experiment."""
    OWN.add(name)
    logging.getLogger(name).setLevel(logging.INFO)


def is_logged(record: logging.LogRecord) -> bool:
    """Whether a record is a warning, or one of our packages'."""
    return record.levelno >= logging.WARNING or record.name.partition(".")[0] in OWN


def announce_torch(log: logging.Logger) -> None:
    """Log that torch is about to be imported, if it is not yet: nothing else is said meanwhile."""
    if "torch" not in sys.modules:
        log.info("loading torch and other libraries: 5 to 20 s, more from a slow disk")
