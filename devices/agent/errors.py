"""What can go wrong on the device, in the words of the protocol."""

from typing import Any, Dict, Optional


class AgentError(Exception):
    """An error event: its kind and message.

    Kinds: "protocol" (the job makes no sense), "runtime-missing", "hash" (not the file expected),
    "load", "run", "mismatch" (it computes something else), "busy" (the device is measuring),
    "fallback" (it would run elsewhere than asked), "phone" (none at hand, or not ready),
    "unsupported" (this backend cannot tell that).
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class Stopped(Exception):  # noqa: N818 - no error: the way out
    """The host asked to stop, or is gone."""


def describe(error: BaseException) -> str:
    """An exception as one readable line or a few."""
    text = str(error).strip()
    return "{}: {}".format(type(error).__name__, text) if text else type(error).__name__


def require(data: Dict[str, Any], key: str, kind: Any, where: str) -> Any:
    """``data[key]``, which must be there and of that type.

    Raises:
        AgentError: it is not.
    """
    value = data.get(key)
    wrong = not isinstance(value, kind) or (kind is int and isinstance(value, bool))
    if wrong:
        name = getattr(kind, "__name__", None) or " or ".join(k.__name__ for k in kind)
        problem = "needs {} {!r}, got {!r}".format(name, key, value)
        raise AgentError("protocol", "{} {}".format(where, problem))
    return value


def optional(data: Dict[str, Any], key: str, kind: Any, where: str) -> Optional[Any]:
    """Like :func:`require`, but None and absent are fine."""
    return None if data.get(key) is None else require(data, key, kind, where)
