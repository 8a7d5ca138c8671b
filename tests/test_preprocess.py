import numpy as np
import pytest
from PIL import Image

from edgevit.errors import OptionError
from edgevit.preprocess import PHOTOGRAPH, Preprocessing, load_image


def test_the_photograph_becomes_a_normalised_nchw_array():
    array = load_image(PHOTOGRAPH, (64, 96), Preprocessing())
    assert array.shape == (1, 3, 64, 96)
    assert array.dtype == np.float32
    assert array.flags["C_CONTIGUOUS"]
    assert array.std() > 0.5  # a real picture, not a constant


def test_mean_std_and_range_are_applied(tmp_path):
    Image.new("RGB", (40, 40), (255, 0, 51)).save(tmp_path / "flat.png")
    plain = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1))
    values = load_image(tmp_path / "flat.png", (32, 32), plain)[0, :, 5, 5]
    np.testing.assert_allclose(values, [1, 0, 0.2], atol=1e-6)
    signed = Preprocessing(mean=(0.5,) * 3, std=(2.0,) * 3, value_range=(-1, 1))
    values = load_image(tmp_path / "flat.png", (32, 32), signed)[0, :, 5, 5]
    np.testing.assert_allclose(values, [0.25, -0.75, -0.55], atol=1e-6)


def test_the_centre_is_cut_out(tmp_path):
    picture = Image.new("RGB", (100, 40), "black")
    picture.paste("white", (40, 0, 60, 40))
    picture.save(tmp_path / "bar.png")
    plain = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), crop=1.0)
    row = load_image(tmp_path / "bar.png", (40, 40), plain)[0, 0, 20]
    assert row[20] == pytest.approx(1)
    assert row[0] == row[-1] == pytest.approx(0)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_number_of_channels(channels):
    array = load_image(PHOTOGRAPH, (32, 32), Preprocessing.for_channels(channels))
    assert array.shape == (1, channels, 32, 32)


def test_a_file_that_is_no_picture_is_an_option_error(tmp_path):
    (tmp_path / "x.png").write_text("no picture")
    for path in (tmp_path / "x.png", tmp_path / "none.png", tmp_path):
        with pytest.raises(OptionError, match="image: expected a picture"):
            load_image(path, (32, 32), Preprocessing())


@pytest.mark.parametrize(
    ("values", "option"),
    [({"crop": 0}, "crop"), ({"std": (1, 0, 1)}, "std"), ({"resample": "box"}, "resample")],
)
def test_impossible_values_are_refused(values, option):
    with pytest.raises(OptionError, match=option):
        Preprocessing(**values)


def test_json_round_trip():
    chosen = Preprocessing(crop=0.9, value_range=(-1.0, 1.0))
    assert Preprocessing.from_json(chosen.to_json()) == chosen
