"""Whether the Hugging Face hub can be reached, found out quickly: its client waits and tries again for minutes."""

from __future__ import annotations

import queue
import threading

__all__ = ["SECONDS", "why_unreachable"]

SECONDS = 4.0
"""So long is waited for the first answer, whatever it is."""


def why_unreachable() -> str | None:
    """Why the hub, or the mirror that HF_ENDPOINT names, gives no answer; None where it does."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set, so nothing is downloaded; unset it"
    answers: queue.Queue[str | None] = queue.Queue()
    # a thread: names that are not found may take longer than any time limit of the request itself
    threading.Thread(target=lambda: answers.put(_ask(constants.ENDPOINT)), daemon=True).start()
    try:
        reason = answers.get(timeout=SECONDS)
    except queue.Empty:
        reason = f"no answer within {SECONDS:g} s"
    return None if reason is None else f"{constants.ENDPOINT} cannot be reached ({reason})"


def _ask(address: str) -> str | None:
    """Ask for an address, by the client that downloads, with its proxies; any answer will do."""
    from huggingface_hub import get_session

    try:
        get_session().head(address, timeout=SECONDS)
    except Exception as error:  # what the HTTP library raises
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return None
