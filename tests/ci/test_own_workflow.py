"""The workflow that others see runs what we run."""

from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")
WORKFLOW = Path(__file__).parents[2] / ".github" / "workflows" / "ci.yml"


def test_packages_are_installed_by_who_may_before_the_tests() -> None:
    steps = yaml.safe_load(WORKFLOW.read_text())["jobs"]["test"]["steps"]
    commands = [step["run"] for step in steps if "run" in step]
    assert commands == ["sudo bash .ci/packages", "bash .ci/run"]
