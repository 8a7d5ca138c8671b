"""Setting up a Raspberry Pi that is none: aarch64 wheels, pip and venv under its processor."""

from dataclasses import replace

import pytest

from devices.check import check
from devices.hosts import Host
from devices.profile import load_profile
from devices.remote import look
from devices.setup import setup
from devices.ssh import SshDevice
from devices.wheels import fetch_wheels, plan_packages
from edgevit.errors import UnavailableError


@pytest.mark.slow
def test_a_raspberry_pi_is_set_up(pi_host: Host) -> None:
    profile = load_profile("rpi4")
    # A folder of its own: the runtimes that other tests use are left alone.
    host = replace(pi_host, environment={"EDGEVIT_HOME": "/home/pi/setup/edgevit"})
    with SshDevice(host).open() as session:
        board = look(session)
        assert (board.machine, board.libc, board.bits) == ("aarch64", "glibc", 64)
        try:
            fetch_wheels(plan_packages(board, profile), board)
        except UnavailableError as error:
            pytest.skip(error.message)
        report = setup(session, profile)
        assert report.proved == ("numpy", "onnxruntime", "ai_edge_litert.interpreter")
        assert report.versions["onnxruntime"] == "1.31.1"
        assert report.versions["ai-edge-litert"] == "2.3.0"
        assert setup(session, profile).done == ()
    with SshDevice(host).open() as session:
        found = {finding.what: finding for finding in check(session, profile, "pi")}
        assert found["python"].text.endswith("/home/pi/setup/edgevit/venv/bin/python")
        assert found["onnxruntime"].level == found["tflite"].level == "ok"
        session.execute(["rm", "-rf", session.home])
