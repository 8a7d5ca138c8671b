import ctypes
import logging
import os
import sys
import warnings

import pytest

from exporters.quiet import quiet


def say_everything() -> None:
    print("python out")
    print("python err", file=sys.stderr)
    os.write(1, b"descriptor out\n")
    os.write(2, b"descriptor err\n")
    ctypes.CDLL(None).puts(b"libc out")
    warnings.warn("a warning", DeprecationWarning, stacklevel=1)
    logging.getLogger("somebody").critical("a record")


def test_nothing_gets_out_and_everything_printed_is_kept(capfd, caplog):
    with quiet() as said:
        say_everything()
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    for words in ("python out", "python err", "descriptor out", "descriptor err", "libc out"):
        assert words in said.text


def test_all_is_loud_again_afterwards(capfd, caplog):
    with quiet():
        say_everything()
    print("after")
    os.write(2, b"after too\n")
    logging.getLogger("somebody").warning("record after")
    assert capfd.readouterr()[0] == "after\n"
    assert [r.message for r in caplog.records] == ["record after"]
    with pytest.warns(UserWarning, match="warning after"):
        warnings.warn("warning after", UserWarning, stacklevel=1)


def test_the_root_logger_is_as_it_was():
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    with quiet():
        root.setLevel(logging.CRITICAL)
        root.addHandler(logging.StreamHandler())
    assert (root.level, root.handlers) == (level, handlers)


def test_an_exception_passes_and_what_was_said_is_there(capfd):
    with pytest.raises(ValueError, match="broken"), quiet() as said:  # noqa: PT012
        print("first\n\nsecond\nthird")
        raise ValueError("broken")
    assert said.tail(2) == "second\nthird"
    assert capfd.readouterr() == ("", "")


def test_nesting_keeps_each_block_s_own_words(capfd):
    with quiet() as outer:
        print("outer before")
        with quiet() as inner:
            print("inner")
        print("outer after")
    assert inner.text == "inner\n"
    assert outer.text == "outer before\nouter after\n"
    assert capfd.readouterr() == ("", "")


def test_a_replaced_stdout_is_caught_too(capsys):
    with quiet() as said:
        print("to a replaced stream")
    assert capsys.readouterr().out == ""
    assert "replaced stream" in said.text


def test_a_handler_made_inside_still_works_outside(capfd):
    with quiet() as said:
        handler = logging.StreamHandler()
        sys.stdout.buffer.write(b"through the buffer\n")
    log = logging.getLogger("made_inside")
    log.propagate = False
    log.addHandler(handler)
    log.error("heard")
    log.removeHandler(handler)
    assert capfd.readouterr() == ("", "heard\n")
    assert said.text == "through the buffer\n"
