"""Failures of the machine that libraries report as if the data were damaged."""

import errno
import os

import numpy as np

# No thread can be started, too little memory, too many open files of the process or of the machine.
EXHAUSTED = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)


class ExhaustedError(OSError):
    """The machine ran out of threads, memory or open files while reading. The data may be intact."""


def raise_if_exhausted(error: Exception, name: object) -> None:
    """Return if `error` comes from the data of `name`; no clip may be dropped because the machine is at its limits.

    Raises:
      ExhaustedError: it comes from the machine.
    """
    if isinstance(error, ExhaustedError):
        raise error
    number = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
    if number is None:  # ArrayRecord and TensorFlow give the text alone
        number = next((n for n in EXHAUSTED if os.strerror(n) in str(error)), None)
    if number in EXHAUSTED and (number != errno.ENOMEM or _lacks_memory()):
        raise ExhaustedError(
            number,
            f"{os.strerror(number)} while reading {name}: raise the limits of this machine (ulimit -a), or use fewer "
            "workers",
        ) from error


def _lacks_memory() -> bool:
    """Whether the largest frame that is read, 256 MiB, does not fit. FFmpeg reports ENOMEM for damaged files, too."""
    try:
        np.empty(1 << 28, np.uint8)
    except MemoryError:
        return True
    return False
