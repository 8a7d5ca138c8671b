"""Running the command line as a user would, in this process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest


@dataclass(frozen=True)
class Outcome:
    """Exit code and both streams of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout, which has to be one JSON document."""
        return json.loads(self.out)


@pytest.fixture
def edgevit(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """``edgevit("export", "elevit")`` runs the command; consoles are made anew each time."""
    from edgevit.cli import app, common

    def run(*arguments: str) -> Outcome:
        common.error_console.cache_clear()
        common.out_console.cache_clear()
        monkeypatch.setattr(sys, "argv", ["edgevit", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        capfd.readouterr()
        try:
            app.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capfd.readouterr()
        return Outcome(code, out, err)

    return run
