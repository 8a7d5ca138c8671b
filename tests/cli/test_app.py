import re
import signal
import subprocess
import sys
import time

import pytest

import edgevit as package


def test_version(edgevit):
    outcome = edgevit("--version")
    assert outcome.out.strip() == f"edgevit {package.__version__}"


@pytest.mark.parametrize(
    "command", [[], ["models"], ["export"], ["verify"], ["bench"], ["table"], ["doctor"]]
)
def test_every_command_explains_itself(edgevit, command):
    outcome = edgevit(*command, "--help")
    assert outcome.code == 0
    assert "Usage" in outcome.out


@pytest.mark.parametrize("arguments", [["--help"], ["models"], ["export", "--help"]])
def test_help_and_listing_import_nothing_heavy(arguments):
    code = (
        "import sys; sys.argv = ['edgevit', *sys.argv[1:]]\n"
        "from edgevit.cli.app import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'pandas', 'onnx', 'onnxruntime', 'coremltools', 'numpy'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.rstrip().endswith("heavy: []"), done.stdout[-200:]


def test_an_unknown_command_is_wrong_usage(edgevit):
    outcome = edgevit("exprot")
    assert outcome.code == 2
    assert "exprot" in outcome.err


def test_errors_as_json(edgevit):
    outcome = edgevit("models", "elvit", "--json")
    assert outcome.json["error"] == "UnknownNameError"
    assert outcome.json["exit_code"] == outcome.code == 2


def test_running_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "edgevit", "--version"], capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"edgevit \d+\.\d+\.\d+\n", done.stdout)


def test_a_closed_pipe_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m edgevit models | head -1; echo ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""


SLOW_FACTORY = '''
import sys, time

def model():
    """Waits within an `exec` of a string, as the making of a dataclass does."""
    print("waiting", file=sys.stderr, flush=True)
    exec("time.sleep(60)")
'''


def test_ctrl_c_ends_with_130_wherever_it_falls(tmp_path):
    """Python itself ends by the signal when it fell into an `exec` of a string, caught or not."""
    (tmp_path / "waits.py").write_text(SLOW_FACTORY)
    command = [sys.executable, "-m", "edgevit", "export", "waits:model", "-o", "exports"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line == "waiting\n":
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in err
