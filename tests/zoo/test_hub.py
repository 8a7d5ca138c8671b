"""Weights from the Hugging Face hub: from a stand-in of its endpoint on loopback, and its cache."""

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save

from edgevit.errors import MissingExtraError, UnavailableError, UsageError, WeightsError
from edgevit.source import model_source
from edgevit.zoo.factory import create_model
from edgevit.zoo.hub import FILES, locate_weights
from edgevit.zoo.randomize import randomize_

MODEL = "vit_cifar10"
OPTIONS = {"image_size": 8, "depth": 1, "dim": 16, "hidden": 16}
COMMIT, OLDER = "1" * 40, "2" * 40


def trained(seed=5):
    return randomize_(create_model(MODEL, **OPTIONS), seed)


def content(seed=5):
    return save(trained(seed).state_dict())


class StandIn(BaseHTTPRequestHandler):
    """What the hub answers to ``HEAD`` and ``GET`` of ``owner/name/resolve/revision/file``."""

    repositories: ClassVar[dict[str, dict[str, dict[str, bytes]]]] = {}
    asked: ClassVar[list[str]] = []

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body):
        self.asked.append(self.path)
        owner, name, _, revision, file = self.path.strip("/").split("/", 4)
        if owner == "closed":
            return self.refuse(403, "GatedRepo")
        if owner == "broken":
            return self.refuse(400, "")
        repository = self.repositories.get(f"{owner}/{name}")
        if repository is None:
            return self.refuse(404, "RepoNotFound")
        commit = {"main": COMMIT, "v1": OLDER}.get(revision, revision)
        if commit not in repository:
            return self.refuse(404, "RevisionNotFound")
        data = repository[commit].get(file)
        if data is None:
            return self.refuse(404, "EntryNotFound", commit)
        self.send_response(200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)
        return None

    def refuse(self, status, code, commit=COMMIT):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", "no")
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def endpoint():
    torch.save(trained().state_dict(), buffer := io.BytesIO())
    StandIn.repositories = {
        "someone/vit": {
            COMMIT: {"model.safetensors": content(), "pytorch_model.bin": b"not read"},
            OLDER: {"model.safetensors": content(6)},
        },
        "someone/pickled": {COMMIT: {"pytorch_model.bin": buffer.getvalue()}},
        "someone/empty": {COMMIT: {"README.md": b"# nothing"}},
        "someone/other": {COMMIT: {"model.safetensors": save({"fc.weight": torch.zeros(2, 2)})}},
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def use(monkeypatch, endpoint, cache):
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    StandIn.asked.clear()


@pytest.fixture
def hub(endpoint, monkeypatch, tmp_path):
    use(monkeypatch, endpoint, tmp_path / "hub")
    return tmp_path


@pytest.mark.parametrize("name", ["someone/vit", "hf-hub:someone/vit"])
def test_a_repository_is_downloaded_and_loaded(hub, name):
    model = create_model(MODEL, weights=name, **OPTIONS)
    for ours, theirs in zip(model.parameters(), trained().parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert not any("pytorch_model" in path for path in StandIn.asked)


def test_the_manifest_knows_repository_and_revision(hub):
    source = model_source(
        MODEL, weights="someone/vit", options={"depth": 1, "dim": 16, "hidden": 16}, image_size=8
    )
    assert source.identity["weights"] == {
        "kind": "hub",
        "repository": "someone/vit",
        "revision": COMMIT,
        "file": "model.safetensors",
    }


def test_a_revision_can_be_asked_for(hub):
    older = locate_weights("hf-hub:someone/vit@v1")
    assert older.revision == OLDER
    model = create_model(MODEL, weights="hf-hub:someone/vit@v1", **OPTIONS)
    assert torch.equal(model.head.weight, trained(6).head.weight)
    with pytest.raises(WeightsError, match="no revision v9"):
        locate_weights("someone/vit@v9")


def test_a_pickle_is_taken_where_there_is_nothing_better(hub):
    file = locate_weights("someone/pickled")
    assert file.path.name == "pytorch_model.bin"
    model = create_model(MODEL, weights="someone/pickled", **OPTIONS)
    assert torch.equal(model.head.weight, trained().head.weight)


def test_what_was_downloaded_once_needs_no_network(hub, monkeypatch):
    first = locate_weights("someone/vit")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    StandIn.asked.clear()
    assert locate_weights("someone/vit") == first
    assert StandIn.asked == []
    with pytest.raises(UnavailableError, match="someone/pickled could not be fetched") as error:
        locate_weights("someone/pickled")
    assert "hf download someone/pickled" in error.value.hint
    assert error.value.exit_code == 3


def test_without_an_answer_it_is_unavailable(monkeypatch, tmp_path):
    use(monkeypatch, "http://127.0.0.1:9", tmp_path)
    with pytest.raises(UnavailableError, match="is not in its cache") as error:
        create_model(MODEL, weights="someone/vit", **OPTIONS)
    assert "give the downloaded file's path" in error.value.hint


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("someone/nothing", WeightsError, "no public repository someone/nothing"),
        ("closed/vit", WeightsError, "asks for its terms"),
        ("someone/empty", WeightsError, "has none of model.safetensors"),
        ("someone/other", WeightsError, "someone/other does not fit the model"),
        ("broken/vit", UnavailableError, "could not be fetched"),
        ("hf-hub:vit", WeightsError, "expected hf-hub:owner/name"),
    ],
)
def test_what_cannot_be_had_says_so(hub, name, kind, message):
    with pytest.raises(kind, match=message) as error:
        create_model(MODEL, weights=name, **OPTIONS)
    assert error.value.hint


def test_a_file_that_exists_goes_before_a_repository(hub, monkeypatch):
    monkeypatch.chdir(hub)
    (hub / "someone").mkdir()
    (hub / "someone" / "vit").write_bytes(b"")
    assert locate_weights("someone/vit").repository is None
    assert locate_weights(Path("someone/vit2")).repository is None
    assert locate_weights("weights/deit.pth").repository is None
    with pytest.raises(WeightsError, match="no weights file"):
        create_model(MODEL, weights="weights/deit.pth", **OPTIONS)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as error:
        locate_weights("someone/vit")
    assert "hub" in error.value.hint


@pytest.mark.slow
def test_the_command_line_takes_it(endpoint, tmp_path):
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf")}
    options = [f"--set={key}={value}" for key, value in OPTIONS.items() if key != "image_size"]
    command = ["export", MODEL, "--image-size=8", *options, "--format=torch", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "edgevit", *command, "--weights=someone/vit", f"-o{tmp_path}"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["model"]["weights"]["revision"] == COMMIT
    assert FILES[0] == "model.safetensors"


def test_weights_in_place_of_a_model_are_told_apart():
    with pytest.raises(UsageError, match="no model of the zoo but looks like weights") as caught:
        model_source("timm/efficientvit_m5.r224_in1k")
    assert "--weights timm/efficientvit_m5.r224_in1k" in str(caught.value.hint)
