from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from made_results import make_result

from edgevit.ci.comment import compare_folders
from edgevit.ci.tables import differences, section, with_tables
from edgevit.ci.workflow import Plan, workflow
from edgevit.errors import OptionError, UsageError
from edgevit.measure import Instructions, Result
from edgevit.measure.results import read_results

ROOT = Path(__file__).resolve().parents[2]
OWN = ROOT / ".github" / "workflows" / "latency.yml"


def page(*results: Result) -> str:
    return with_tables("# Title\n", {"local": section(results)})


def test_tables_stand_between_their_markers_and_nothing_else_changes() -> None:
    before = "# Title\n\n<!-- edgevit:a -->\nold\n<!-- /edgevit:a -->\n\nafterwards\n"
    after = with_tables(before, {"a": "new", "b": "more"})
    assert "old" not in after
    assert after.startswith("# Title\n\n<!-- edgevit:a -->\n\nnew\n\n<!-- /edgevit:a -->\n\nafter")
    assert after.endswith("## b\n\n<!-- edgevit:b -->\n\nmore\n\n<!-- /edgevit:b -->\n")
    assert with_tables(after, {"a": "new", "b": "more"}) == after


@pytest.mark.parametrize(
    "text",
    ["<!-- edgevit:a -->", "<!-- /edgevit:a --> <!-- edgevit:a -->", "<!-- /edgevit:a -->"],
)
def test_markers_that_are_no_pair_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not one pair"):
        with_tables(text, {"a": "new"})
    with pytest.raises(OptionError):
        with_tables("", {"A B": "new"})


def test_times_machines_and_dates_are_never_compared() -> None:
    now = make_result(
        ms=80.0, status="unstable", reason="a fan", created="2027-05-06T07:08:09+00:00"
    )
    facts = {"cpu": {"model": "Other"}, "os": {"name": "Else 1"}}
    device = replace(now.context.device, facts=facts)
    now = replace(now, context=replace(now.context, device=device, edgevit="0.2.0"))
    assert differences(page(make_result()), {"local": section([now])}) == ""


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (make_result(name="other"), "other"),
        (make_result(batch=4), "batch|4"),
        (make_result(file_bytes=1), "size|0"),
        (make_result(command="edgevit bench elevit --runs 7"), "--runs 7"),
    ],
)
def test_other_rows_and_other_commands_are_found(head: Result, told: str) -> None:
    found = differences(page(make_result()), {"local": section([head])})
    assert any(re.search(told, line) for line in found.splitlines() if line.startswith("+")), found


def test_a_missing_row_column_or_table_is_found() -> None:
    two = section([make_result(), make_result(name="b")])
    assert "-b" in differences(with_tables("", {"local": two}), {"local": section([make_result()])})
    assert "(no table)" in differences("", {"local": two})
    cut = page(make_result()).replace("| p90 (ms) ", "")
    assert differences(cut, {"local": section([make_result()])})


def folder(place: Path, name: str, result: Result) -> None:
    result.write(place / name)


def counted(millions: float) -> Result:
    told = Instructions(int(millions * 1e6), 0.005, "callgrind")
    return replace(make_result(samples=()), instructions=told)


@pytest.mark.parametrize(("head", "code"), [(101.0, 0), (103.0, 1), (90.0, 0)])
def test_instructions_decide_and_times_are_told(tmp_path: Path, head: float, code: int) -> None:
    last, now = tmp_path / "last", tmp_path / "now"
    folder(last, "instructions", counted(100.0))
    folder(now, "instructions", counted(head))
    folder(last, "board", make_result(ms=10.0))
    folder(now, "board", make_result(ms=20.0))
    told = compare_folders(last, now, fail_over=0.02)
    assert told.exit_code == code
    assert "### board" in told.text
    assert "slower" in told.text


def test_nothing_earlier_and_other_machines_are_no_regression(tmp_path: Path) -> None:
    last, now = tmp_path / "last", tmp_path / "now"
    folder(now, "a", make_result())
    assert "No earlier results" in compare_folders(last, now, fail_over=None).text
    folder(last, "a", make_result(device="another"))
    told = compare_folders(last, now, fail_over=None)
    assert told.exit_code == 0
    assert "Not compared: base and head were not measured on the same device" in told.text
    with pytest.raises(UsageError):
        compare_folders(last, tmp_path / "none", fail_over=None)


def edgevit(folder: Path, *arguments: str) -> int:
    """Exit code of a command there."""
    program = Path(sys.executable).with_name("edgevit")
    return subprocess.run([str(program), *arguments], cwd=folder, check=False).returncode


def validate(file: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("check-jsonschema")
    command = [str(program), "--builtin-schema", "vendor.github-workflows", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "plan", [Plan(), Plan(models=["xcit_tiny_12_p8+sima"], boards=["pi", "x"])]
)
def test_the_workflow_follows_githubs_schema(plan: Plan, tmp_path: Path) -> None:
    file = tmp_path / "latency.yml"
    file.write_text(workflow(plan))
    told = validate(file)
    assert told.returncode == 0, told.stdout
    runners = yaml.safe_load(file.read_text())["jobs"]["measure"]["strategy"]["matrix"]["include"]
    labels = [[entry["name"], entry["runner"]] for entry in runners[3:]]
    assert labels == [[name, ["self-hosted", name]] for name in plan.boards]
    file.write_text(file.read_text().replace("runs-on", "runs-at"))
    assert validate(file).returncode != 0


def test_the_repositorys_own_workflow_is_what_the_tool_writes(
    tmp_path: Path,
) -> None:
    command = re.search("`edgevit (.*?)`", OWN.read_text())
    assert command
    assert edgevit(tmp_path, *shlex.split(command[1])) == 0
    assert (tmp_path / ".github/workflows/latency.yml").read_text() == OWN.read_text()
    assert edgevit(tmp_path, *shlex.split(command[1])) == 2  # never overwrites by itself


def test_words_that_would_break_out_are_refused(tmp_path: Path) -> None:
    assert edgevit(tmp_path, "ci", "init", 'x"; rm', "--output", "w.yml") == 2
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_and_checks_a_page(tmp_path: Path) -> None:
    folder(tmp_path, "board", make_result())
    assert edgevit(tmp_path, "ci", "tables", "page.md", "board", "--check") == 1
    assert edgevit(tmp_path, "ci", "tables", "page.md", "board") == 0
    assert edgevit(tmp_path, "ci", "tables", "page.md", "board", "--check") == 0
    text = (tmp_path / "page.md").read_text()
    (tmp_path / "page.md").write_text(text.replace("| elevit", "| elevat"))
    assert edgevit(tmp_path, "ci", "tables", "page.md", "board", "--check") == 1


def run_steps(job: str, folder: Path, environment: dict[str, str], *names: str) -> None:
    """The shell steps of a job as they stand; ``names`` are all that it has."""
    data = yaml.safe_load(OWN.read_text())
    steps = [step for step in data["jobs"][job]["steps"] if "run" in step]
    assert tuple(s["name"] for s in steps) == names
    path = os.pathsep.join([str(folder / "shims"), str(Path(sys.executable).parent)])
    # A lock of its own: nobody has to wait for what these steps measure.
    (folder / "tmp").mkdir(exist_ok=True)
    told = {**os.environ, "TMPDIR": str(folder / "tmp"), **data["env"], **environment}
    told["PATH"] = f"{path}{os.pathsep}{os.environ['PATH']}"
    for step in steps:
        assert "${{" not in step["run"]
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        done = subprocess.run(
            command, cwd=folder, env=told, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (step["name"], done.stdout, done.stderr)


def installable(folder: Path) -> dict[str, str]:
    """A copy of what is installed, and what lets pip install it beside this environment."""
    for name in ("pyproject.toml", "README.md", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    for name in ("edgevit", "exporters", "devices", "profiles"):
        shutil.copytree(ROOT / name, folder / name)
    into = str(folder / "installed")
    return {"PIP_PREFIX": into, "PIP_IGNORE_INSTALLED": "1", "PIP_NO_DEPS": "1"}


def shim(folder: Path, name: str, script: str) -> None:
    """A program of that name in the steps' path."""
    place = folder / "shims" / name
    place.parent.mkdir(exist_ok=True)
    place.write_text(f"#!/bin/bash\nset -e\n{script}\n")
    place.chmod(0o755)


#: A model of somebody else's. valgrind takes a hundred times longer for a product than for a sort.
TINY = '''
from edgevit.zoo.registry import register_model
from torch import nn

class Tiny(nn.Module):
    def __init__(self, in_chans, num_classes):
        super().__init__()
        self.head = nn.Linear(in_chans, num_classes)

    def forward(self, x):
        return self.head(x.flatten(2).sort().values[..., ::512].mean(2))

@register_model()
def tiny(*, num_classes, image_size, in_chans):
    """The quantiles of each channel, and a head."""
    return Tiny(in_chans, num_classes)
'''


def plugin(folder: Path, name: str, code: str) -> None:
    """A distribution of one module with models, as pip would leave it."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[edgevit.models]\n{name} = {name}\n")
    (folder / f"{name}.py").write_text(code)


@pytest.mark.slow
def test_every_step_of_the_linux_job_runs_as_it_stands(tmp_path: Path) -> None:
    job = yaml.safe_load(OWN.read_text())["jobs"]["measure"]
    (machine,) = [m for m in job["strategy"]["matrix"]["include"] if m["name"] == "linux-x64"]
    environment = installable(tmp_path) | {
        "NAME": machine["name"],
        "FORMATS": machine["formats"],
        "MODELS": "efficientvit_m0",
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
    }
    run_steps("measure", tmp_path, environment, "Install", "Export", "Verify", "Bench", "Table")
    assert list((tmp_path / "results" / "linux-x64").glob("*.json"))
    assert "efficientvit_m0" in (tmp_path / "summary.md").read_text()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_every_step_of_the_count_job_runs_as_it_stands(tmp_path: Path) -> None:
    # The packages are here already; a system is not installed into by its tests.
    shim(tmp_path, "sudo", 'echo "$@" >> asked')
    # To start a model of the zoo takes valgrind minutes.
    plugin(tmp_path / "site", "tiny", TINY)
    environment = installable(tmp_path) | {
        "NAME": "linux-x64",
        "MODELS": "tiny",
        "PYTHONPATH": str(tmp_path / "site"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    run_steps("count", tmp_path, environment, "Install", "Count")
    assert "valgrind" in (tmp_path / "asked").read_text()
    (result,) = read_results(tmp_path / "counts" / "instructions-linux-x64")
    assert result.instructions is not None
    assert result.instructions.tolerance < 0.02  # the workflow's own limit means something


#: GitHub's program, as far as the workflow uses it: the last run's results lie in ``earlier``.
GH = """\
case "$1 $2" in
  "run list") echo 7 ;;
  "run download") [ "$3 $4 $5" = "7 --dir fetched" ]; cp -r earlier fetched ;;
  "pr comment") [ "$3 $4" = "12 --body-file" ]; cp "$5" posted.md ;;
  *) exit 1 ;;
esac
"""


def git(folder: Path, *words: str) -> str:
    named = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main"]
    command = ["git", *named, *words]
    return subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.mark.slow
def test_every_step_of_the_tables_job_runs_as_it_stands(tmp_path: Path) -> None:
    work, hub = tmp_path / "work", tmp_path / "hub.git"
    work.mkdir()
    shim(work, "gh", GH)
    folder(work / "now", "linux-x64", make_result(ms=20.0))
    folder(work / "now", "instructions-linux-x64", counted(101.0))
    folder(work / "earlier" / "results-linux-x64", "linux-x64", make_result(ms=10.0))
    folder(work / "earlier" / "counts-linux-x64", "instructions-linux-x64", counted(100.0))
    (work / "docs").mkdir()
    (work / "docs" / "latency.md").write_text("# Latency\n")
    git(tmp_path, "init", "--bare", "-q", str(hub))
    git(work, "init", "-q")
    git(work, "add", "docs")
    git(work, "commit", "-q", "-m", "Start")
    git(work, "remote", "add", "origin", str(hub))
    git(work, "push", "-q", "-u", "origin", "main")
    environment = installable(work) | {
        "GH_TOKEN": "x", "GH_REPO": "a/b", "BRANCH": "main", "PULL_REQUEST": "12",
    }  # fmt: skip
    run_steps(
        "tables", work, environment,
        "Install", "Last results", "Tables", "Compare", "Comment", "Keep the page",
    )  # fmt: skip
    written = (work / "docs" / "latency.md").read_text()
    assert "<!-- edgevit:linux-x64 -->" in written
    assert "instructions" not in written
    posted = (work / "posted.md").read_text()
    assert "### linux-x64" in posted
    assert "slower" in posted
    assert "### instructions-linux-x64" in posted
    assert git(hub, "show", "main:docs/latency.md") == written.strip()
    # More instructions than the limit fail the job, and the comment is there all the same.
    folder(work / "now", "instructions-linux-x64", counted(110.0))
    step = "edgevit ci comment last now --fail-over 2% --output comment.md"
    assert edgevit(work, *shlex.split(step)[1:]) == 1
