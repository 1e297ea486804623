"""A lock that dies with its process, so that nobody ever has to delete one by hand."""

from __future__ import annotations

import errno
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tag2mask.file_lock import acquire
from tag2mask.run.files import cannot_write
from tag2mask.types import UserError

_UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


class Lock:
    """Held from construction until :meth:`release` or the end of the process, however it ends.

    The operating system keeps the lock, not the file's existence: after a kill -9 the file is still there and
    free. Its text (process, host) only serves the message. On a file system without locks a warning is given
    and nothing is held.

    Raises:
        UserError: another living process holds it.
        OSError: the file cannot be made.
    """

    def __init__(self, path: Path, what: str, *, wait: bool = False):
        self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            acquire(self._descriptor, wait)
        except OSError as error:
            owner = os.pread(self._descriptor, 200, 0) if hasattr(os, "pread") else b""
            self.release()
            if error.errno in _UNSUPPORTED:
                warnings.warn(
                    f"{path.parent} is on a file system without locks: take care that nothing else writes there",
                    stacklevel=3,
                )
                return
            raise UserError(
                f"{what} is being written by {owner.decode(errors='replace').strip() or 'another process'}. "
                f"Wait for it, stop it, or choose another folder."
            ) from None
        with suppress(OSError):  # the text is for people; on a full disk the lock holds without it
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def release(self) -> None:
        """Let go. The file stays: removing it would let two processes hold locks on two files of one name."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@contextmanager
def locked(folder: Path, what: str, option: str = "--out") -> Iterator[None]:
    """``folder``, made where it is not there, for this process alone while the block runs.

    what: is written there, for the message. option: by which another folder is chosen.

    Raises:
        UserError: another living process holds it, nothing can be written there, or the disk gets full meanwhile.
        KeyboardInterrupt: Ctrl-C; where the block says no more of it, that the same command resumes it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(folder / ".lock", what)
    except OSError as error:
        raise cannot_write(f"{option} {folder}", error) from error
    try:
        yield
    except KeyboardInterrupt as stop:
        if stop.args:
            raise
        raise KeyboardInterrupt(
            f"stopped; what is done is in {folder}: give the same command again to resume"
        ) from stop
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{error.filename or folder}: no room is left ({error.strerror}); make some, and give the same command "
            "again: what is done is kept"
        ) from error
    finally:
        lock.release()
