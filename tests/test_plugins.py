"""Entry points and the cache of them."""

import json
import sys

import pytest

from edgevit import registry
from edgevit.errors import UnknownNameError
from edgevit.registry import PluginRegistry, entry_points, load_object


@pytest.fixture(autouse=True)
def _fresh(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    registry._all_entry_points.cache_clear()
    yield
    registry._all_entry_points.cache_clear()


def install(folder, entry):
    """A distribution with one entry point, as pip would leave it."""
    info = folder / "thirdparty-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thirdparty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry)


def test_ours_are_found():
    assert entry_points("edgevit.exporters")["onnx"] == "exporters.onnx:OnnxExporter"
    assert load_object("edgevit.errors:UsageError").__name__ == "UsageError"
    assert load_object("edgevit.errors").__name__ == "edgevit.errors"


def test_what_was_found_is_kept_until_the_import_path_changes(tmp_path, monkeypatch):
    entry_points("edgevit.models")
    registry._all_entry_points.cache_clear()
    monkeypatch.setattr(registry, "_read_metadata", lambda: pytest.fail("read again"))
    assert "elevit" in entry_points("edgevit.models")
    monkeypatch.undo()
    registry._all_entry_points.cache_clear()

    install(tmp_path / "site", "[edgevit.exporters]\nncnn = thirdparty:Ncnn\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert entry_points("edgevit.exporters")["ncnn"] == "thirdparty:Ncnn"


def test_a_plugin_of_another_package_is_instantiated_once(tmp_path, monkeypatch):
    install(tmp_path, "[edgevit.exporters]\nncnn = thirdparty:Ncnn\n")
    (tmp_path / "thirdparty.py").write_text("class Ncnn: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins = PluginRegistry("format", "edgevit.exporters")
    assert "ncnn" in plugins
    assert plugins.get("ncnn") is plugins.get("ncnn")
    assert type(plugins.get("ncnn")) is sys.modules["thirdparty"].Ncnn


@pytest.mark.parametrize("content", ["", "{", "[]", json.dumps({"other": {}})])
def test_a_damaged_cache_is_read_anew(content):
    entry_points("edgevit.models")
    registry._cache_file().write_text(content)
    registry._all_entry_points.cache_clear()
    assert "elevit" in entry_points("edgevit.models")


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "elevit" in entry_points("edgevit.models")


def test_an_unknown_plugin_suggests_near_ones():
    with pytest.raises(UnknownNameError) as caught:
        PluginRegistry("format", "edgevit.exporters", listing="edgevit doctor").get("onxn")
    assert caught.value.nearest[0] == "onnx"
