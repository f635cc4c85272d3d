"""What this distribution is called, and where it lies."""

from pathlib import Path

__version__ = "0.2.0"
DISTRIBUTION = "torchlauncher"  # not `launcher`, which is somebody else's on the package index
PACKAGE = Path(__file__).parent


def install(extra: str) -> str:
    """The command that brings what an extra of ours needs.

    A name that is not installed here would be fetched from the package index, from whoever has it there: then it is
    the clone that runs which is named.
    """
    return f"pip install {_quoted(f'{_source()}[{extra}]')}"


def _source() -> str:
    from importlib import metadata  # half of the standard library: not what `launcher --help` should wait for

    try:
        return metadata.distribution(DISTRIBUTION).metadata["Name"]
    except metadata.PackageNotFoundError:
        return str(PACKAGE.parent)


def _quoted(text: str) -> str:
    """For a shell, as people write it: extras are in brackets, which some shells take for a pattern."""
    import shlex

    return shlex.quote(text) if set(text) & set('"$`\\!') else f'"{text}"'
