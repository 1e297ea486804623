"""A lock on an open file that ends with the process that holds it."""

from __future__ import annotations

import os
import sys

if sys.platform == "win32":
    import msvcrt

    def acquire(descriptor: int, wait: bool) -> None:
        """Lock an open file for this process alone. wait: else raises OSError where another holds it."""
        # a byte far behind the text: Windows forbids reading what is locked
        os.lseek(descriptor, 1 << 20, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)

else:
    import fcntl

    def acquire(descriptor: int, wait: bool) -> None:
        """Lock an open file for this process alone. wait: else raises OSError where another holds it."""
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
