"""The exceptions and warnings that users of the package meet."""

_LONGEST = 1000  # characters


def plain_line(text: str) -> str:
    """Return a text that came from elsewhere as one line of printable characters, not too long for a message."""
    plain = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return plain if len(plain) <= _LONGEST else f"{plain[: _LONGEST // 2]} ... {plain[-200:]}"


class X2LError(Exception):
    """Base of every error that the package raises on purpose."""


class SettingsError(X2LError, ValueError):
    """A setting or argument has a value that cannot work."""


class VideoError(X2LError):
    """A video cannot be opened or decoded."""


class ModelError(X2LError):
    """A model cannot be loaded, or cannot serve what is asked of it."""


class MemoryFileError(X2LError):
    """A memory on disk is missing, damaged, or belongs to another model.

    What the memory itself says stands in messages: they are one line of printable characters, whatever that is.
    """

    def __init__(self, message: str) -> None:
        super().__init__(plain_line(message))


class MemoryWarning(UserWarning):
    """A memory on disk was left unfinished, and what is whole of it is used."""


class ModelWarning(UserWarning):
    """A model's configuration contradicts its weights, but it can be used."""


class VideoWarning(UserWarning):
    """A video is damaged or odd, but what could be decoded is used."""
