"""Asking an object store again while it is away, and saying what to do when it stays away."""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

from storage.errors import StoreAway

log = logging.getLogger(__name__)
T = TypeVar("T")

# A server that is started anew, or a network that is mended, is back by then.
PATIENCE_SECONDS = 300.0
# Who has never heard from the server had better look at the address.
FIRST_PATIENCE_SECONDS = 10.0
LONGEST_PAUSE_SECONDS = 5.0
STATUS = re.compile(r"status code: (\d{3})")
REFUSED = ("401", "403")
# Of the other answers that refuse, those that may be another one next time.
PASSING = ("408", "409", "429")
NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "bucket does not exist")
# Where a machine in a cloud is told its keys; asked when there are none in the environment.
MACHINE_KEYS = "169.254."
KEPT = "What was committed is kept: run the same command again"


def patiently(call: Callable[[], T], *, seconds: float, whom: str) -> T:
    """Make a request, again while the server does not answer, breaks off, or says that it cannot.

    Args:
        seconds: for how long.
        whom: the store, to be named.
    Raises:
        FileNotFoundError: there is no such object.
        StoreAway: no answer in all that time, or one that refuses.
    """
    from obstore.exceptions import GenericError, PermissionDeniedError, UnauthenticatedError

    refusals = (PermissionDeniedError, UnauthenticatedError)
    deadline, pause, told = time.monotonic() + seconds, 0.2, False
    while True:
        try:
            return call()
        except FileNotFoundError as error:
            # The messages of the library below are pages long.
            raise (_no_bucket(whom) if _names_no_bucket(error) else FileNotFoundError("no such object")) from None
        except (GenericError, *refusals) as error:
            if _names_no_bucket(error):
                raise _no_bucket(whom) from None
            if isinstance(error, refusals) or _status(error) in REFUSED or MACHINE_KEYS in str(error):
                raise _refused(whom, error) from None
            if _is_final(error):
                raise StoreAway(f"{whom} must take the request, and does not: {_reason(error)}. {KEPT}") from None
            if time.monotonic() + pause > deadline:
                raise StoreAway(
                    f"{whom} must answer, and did not for {seconds:.0f} s: {_reason(error)}. Check the network, and "
                    f"that AWS_ENDPOINT_URL names the server. {KEPT}"
                ) from None
            if not told and seconds > FIRST_PATIENCE_SECONDS:
                log.warning("%s does not answer (%s); it is asked again for %d s", whom, _reason(error), seconds)
                told = True
        # Not all at once, when many were waiting.
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def _refused(whom: str, error: Exception) -> StoreAway:
    return StoreAway(
        f"{whom} must let Graft list, read, write and delete, and there is no key that may ({_reason(error)}). Set "
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (for gs:// and az:// their own variables)"
    )


def _no_bucket(whom: str) -> StoreAway:
    return StoreAway(f"{whom} must be there, and there is no such bucket. Create it, or correct GRAFT_STORE")


def _names_no_bucket(error: Exception) -> bool:
    return any(name in str(error) for name in NO_BUCKET)


def _is_final(error: Exception) -> bool:
    status = _status(error)
    return status.startswith(("3", "4")) and status not in PASSING


def _status(error: Exception) -> str:
    """What a server answered; nothing where none did."""
    found = STATUS.search(str(error))
    return found[1] if found else ""


def _reason(error: Exception) -> str:
    """What a long message comes down to; without addresses, which may hold a signature."""
    text = str(error).partition("Debug source")[0]
    if status := _status(error):
        code = re.search(r"<Code>(\w+)</Code>", text)
        return f"HTTP {status}{f', {code[1]}' if code else ''}"
    return " ".join(re.sub(r"https?://\S+", "", text).rpartition(" - ")[2].split()).rpartition("HTTP error: ")[2][:160]
