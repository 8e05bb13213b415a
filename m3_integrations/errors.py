"""Every exception and warning of the package, each derived from M3Error or M3Warning."""

from m3_integrations.core.errors import *  # noqa: F403  # all of them, and nothing else
