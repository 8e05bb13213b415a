"""Count the comparisons with other libraries, and fail a run with fewer than expected."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--min-comparisons", type=int, default=0, metavar="N", help="fail if fewer than N tests pass")


def pytest_sessionfinish(session: pytest.Session) -> None:
    expected = session.config.getoption("min_comparisons")
    if session.exitstatus == pytest.ExitCode.OK and passed(session.config).total() < expected:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    counts, expected = passed(config), config.getoption("min_comparisons")
    terminalreporter.section("comparisons with other libraries")
    for module, count in sorted(counts.items()):
        terminalreporter.write_line(f"{count:5} {module}")
    terminalreporter.write_line(f"{counts.total():5} in all; at least {expected} must pass")


def passed(config: pytest.Config) -> Counter[str]:
    """Count the tests that passed, by module; skipped and expected failures do not count."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return Counter(Path(report.location[0]).stem for report in reporter.stats.get("passed", []))
