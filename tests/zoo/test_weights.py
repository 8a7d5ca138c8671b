import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgevit.errors import WeightsError
from edgevit.zoo.factory import create_model
from edgevit.zoo.weights import hash_state, load_weights, read_state

SMALL = {"image_size": 32, "widths": (8, 8, 16), "depths": (1, 1, 1), "stem": (8, 8)}


def small(**options):
    return create_model("elevit", **SMALL, **options)


def equal(a, b):
    return all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_weights_come_back(tmp_path, suffix):
    origin, path = small(seed=7), tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file(origin.state_dict(), path)
    else:
        torch.save(origin.state_dict(), path)
    assert equal(small(weights=path), origin)
    assert not equal(small(), origin)


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_a_training_checkpoint_is_unwrapped(tmp_path, wrapper):
    origin = small(seed=7)
    parallel = {f"module.{k}": v for k, v in origin.state_dict().items()}
    torch.save({wrapper: parallel, "epoch": 3}, tmp_path / "w.pth")
    assert equal(small(weights=tmp_path / "w.pth"), origin)


def test_a_missing_file():
    with pytest.raises(WeightsError, match="no weights file at"):
        read_state("nowhere.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_truncated_file(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    state = small().state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(WeightsError, match="is damaged"):
        small(weights=path)


class Evil:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, capsys):
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="holds more than tensors"):
        small(weights=tmp_path / "evil.pth")
    with (tmp_path / "plain.pt").open("wb") as file:
        pickle.dump(Evil(), file)
    with pytest.raises(WeightsError, match=r"plain\.pt"):
        small(weights=tmp_path / "plain.pt")
    assert "never" not in capsys.readouterr().out


def test_a_whole_pickled_model_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "model.pth")
    with pytest.raises(WeightsError, match="holds more than tensors"):
        read_state(tmp_path / "model.pth")


def test_a_file_without_tensors(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="holds no state dict"):
        read_state(tmp_path / "w.pth")


def test_another_suffix(tmp_path):
    (tmp_path / "w.h5").write_text("")
    with pytest.raises(WeightsError, match=r"not from \.h5"):
        read_state(tmp_path / "w.h5")


def test_what_does_not_fit_is_listed_and_nothing_is_loaded(tmp_path):
    model = small()
    before = hash_state(model)
    state = small(num_classes=4, seed=9).state_dict()
    state["surplus.weight"] = torch.ones(1)
    del state["norm.weight"]
    with pytest.raises(WeightsError) as caught:
        load_weights(model, state, source="w.pth")
    message = str(caught.value)
    assert "w.pth does not fit the model; nothing was loaded" in message
    assert "1 missing:\n    norm.weight" in message
    assert "1 unexpected:\n    surplus.weight" in message
    assert "head.weight: (4, 16), the model has (10, 16)" in message
    assert hash_state(model) == before


def test_long_lists_are_cut(tmp_path):
    with pytest.raises(WeightsError, match=r"\.\.\. and \d+ more"):
        load_weights(small(), {})


def test_the_hash_depends_on_every_value():
    model = small()
    before = hash_state(model)
    assert before == hash_state(small())
    with torch.no_grad():
        model.norm.running_mean[0] += 1e-6
    assert hash_state(model) != before
