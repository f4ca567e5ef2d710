"""What a peer says of itself, checked before aiortc reads it: offers, and candidates that come after them."""

from __future__ import annotations

import re
from typing import NamedTuple

from ...errors import InputError

__all__ = ["PLACE", "Fragment", "fragment", "offer"]

PLACE = "webrtc"
MOST = 65_536  # characters
_MEDIA, _CANDIDATES = 8, 64
_NAME = re.compile(r"[A-Za-z0-9+/]{1,256}")


class Fragment(NamedTuple):
    """Of trickle ICE (RFC 8840): the ufrag, or None; then (mid, candidate line) of each candidate."""

    ufrag: str | None
    candidates: tuple[tuple[str, str], ...]


def offer(text: str, *, receives: bool) -> str:
    """The offer of a peer that is to send video to us (receives: that is to receive it), as it is given to aiortc.

    Candidates with mDNS names are left out, so that nothing asks the network for them: such a peer is found by its own
    checks. So is the end of candidates, for the same reason. Raises InputError.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    if not text.startswith("v=0") or "\0" in text:
        raise InputError(PLACE, "an offer must be a session description (SDP)", text[:20])
    media = [line[2:].split(" ")[0] for line in lines if line.startswith("m=")]
    if len(media) > _MEDIA or sum(line.startswith("a=candidate:") for line in lines) > _CANDIDATES:
        raise InputError(PLACE, f"an offer has at most {_MEDIA} media and {_CANDIDATES} candidates")
    if not set(media) <= {"audio", "video"}:
        raise InputError(PLACE, "an offer holds video and audio only", ", ".join(sorted(set(media))))
    if "video" not in media:
        raise InputError(PLACE, "an offer must hold video", ", ".join(media) or "nothing")
    given = {"a=recvonly", "a=sendrecv"} if receives else {"a=sendonly", "a=sendrecv"}
    directions = [line for line in lines if line in ("a=recvonly", "a=sendonly", "a=sendrecv", "a=inactive")]
    if directions and not given & set(directions):
        raise InputError(PLACE, f"an offer must {'receive' if receives else 'send'} video", ", ".join(directions)[2:])
    return "\r\n".join(line for line in lines if line and not _left_out(line)) + "\r\n"


def fragment(text: str) -> Fragment:
    """The body of a PATCH. Raises InputError."""
    ufrag, mid, found = None, "", list[tuple[str, str]]()
    for line in text.replace("\r\n", "\n").split("\n"):
        kind, _, value = line.partition(":")
        if kind == "a=ice-ufrag":
            if ufrag not in (None, value):
                raise InputError(PLACE, "a fragment is of one ICE session")
            ufrag = value
        elif kind == "a=mid":
            mid = value
        elif kind == "a=candidate":
            if len(found) == _CANDIDATES:
                raise InputError(PLACE, f"a fragment has at most {_CANDIDATES} candidates")
            if not _left_out(line):
                found.append((mid, value))
        elif line and not re.match(r"[am]=", line):
            raise InputError(PLACE, "a fragment must be of trickle ICE (RFC 8840)", line[:20])
    if ufrag is not None and not _NAME.fullmatch(ufrag):
        raise InputError(PLACE, "ice-ufrag must be letters and digits", ufrag[:20])
    if ufrag is None and not found:
        raise InputError(PLACE, "a fragment must tell its ice-ufrag, or candidates")
    return Fragment(ufrag, tuple(found))


def _left_out(line: str) -> bool:
    if line == "a=end-of-candidates":
        return True
    parts = line.split(" ")
    return line.startswith("a=candidate:") and (len(parts) < 8 or parts[4].lower().endswith(".local"))
