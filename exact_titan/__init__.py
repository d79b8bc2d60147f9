"""Long-context continued pretraining in torchtitan with EXACT (arXiv 2605.10544)."""


def version() -> str:
    """Return the version of the installed package, or ``unknown`` for a checkout that is not installed."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("exact-titan")
    except PackageNotFoundError:
        return "unknown"


def __getattr__(name: str) -> str:
    if name == "__version__":
        return version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
