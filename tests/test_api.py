"""The package's own names."""

import subprocess
import sys

import pytest

import edgevit


@pytest.mark.parametrize("name", [n for n in edgevit.__all__ if n != "__version__"])
def test_every_public_name_is_there(name):
    assert callable(getattr(edgevit, name))
    assert getattr(edgevit, name).__doc__


@pytest.mark.parametrize("verb", ["export", "bench"])
def test_a_verb_is_a_function_however_it_was_imported(verb):
    """A module of the same name would take its place once somebody imports it."""
    code = (
        f"import edgevit, edgevit.verbs.{verb}\n"
        f"from edgevit.verbs.{verb} import {verb}\n"
        f"for _ in range(2): assert edgevit.{verb} is {verb}, edgevit.{verb}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_it_costs_nothing():
    code = "import sys, edgevit; assert not {'torch', 'numpy', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'exprot'"):
        edgevit.exprot  # noqa: B018
