"""Going on where a bench was cut short, and starting anew where it was not."""

import pytest
from made_results import make_result

from edgevit.errors import OutputError
from edgevit.verbs.journal import Journal

PROTOCOL = make_result().protocol


def test_what_was_settled_is_found_again(tmp_path):
    first = Journal.open(tmp_path, ["a", "b"])
    first.settle("a", make_result().write(tmp_path))
    again = Journal.open(tmp_path, ["b", "a"])
    assert again.started == first.started
    assert again.result("a", PROTOCOL) == make_result()
    assert again.result("b", PROTOCOL) is None


def test_another_set_of_measurements_is_another_journal(tmp_path):
    Journal.open(tmp_path, ["a", "b"]).settle("a", make_result().write(tmp_path))
    assert Journal.open(tmp_path, ["a", "c"]).settled == {}
    assert Journal.open(tmp_path, ["a"]).settled == {}


def test_fresh_forgets(tmp_path):
    Journal.open(tmp_path, ["a", "b"]).settle("a", make_result().write(tmp_path))
    assert Journal.open(tmp_path, ["a", "b"], fresh=True).settled == {}
    assert Journal.open(tmp_path, ["a", "b"]).settled == {}


def test_a_finished_bench_leaves_no_journal(tmp_path):
    journal = Journal.open(tmp_path, ["a", "b"])
    for key in ("a", "b"):
        assert not list(tmp_path.glob(".bench-*")) or key == "b"
        journal.settle(key, make_result().write(tmp_path))
        journal.finish() if key == "b" else None
    assert not list(tmp_path.glob(".bench-*"))


def test_an_unfinished_bench_keeps_its_journal(tmp_path):
    journal = Journal.open(tmp_path, ["a", "b"])
    journal.settle("a", make_result().write(tmp_path))
    journal.finish()
    assert len(list(tmp_path.glob(".bench-*.journal"))) == 1


def test_a_result_that_went_or_was_written_over_does_not_count(tmp_path):
    journal = Journal.open(tmp_path, ["a", "b"])
    file = make_result().write(tmp_path)
    journal.settle("a", file)
    assert journal.result("a", {**PROTOCOL, "min_runs": 51}) is None
    file.write_text("{}")
    assert journal.result("a", PROTOCOL) is None
    file.unlink()
    assert journal.result("a", PROTOCOL) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 0}', '{"version": 1, "settled": []}'])
def test_a_damaged_journal_is_none(tmp_path, text):
    journal = Journal.open(tmp_path, ["a", "b"])
    journal.settle("a", make_result().write(tmp_path))
    journal.file.write_text(text)
    assert Journal.open(tmp_path, ["a", "b"]).settled == {}


def test_a_table_of_the_folder_does_not_see_the_journal(tmp_path):
    from edgevit.measure.results import read_results

    Journal.open(tmp_path, ["a", "b"]).settle("a", make_result().write(tmp_path))
    assert len(read_results(tmp_path)) == 1


def test_without_a_folder_nothing_is_kept(tmp_path, in_tmp):
    journal = Journal.open(None, ["a"])
    with journal.held():
        journal.settle("a", tmp_path / "never-written.json")
    assert journal.result("a", PROTOCOL) is None
    journal.finish()
    assert not list(tmp_path.iterdir())


def test_the_same_bench_does_not_run_twice_at_a_time(tmp_path):
    first, other = Journal.open(tmp_path, ["a"]), Journal.open(tmp_path, ["b"])
    with (
        first.held(),
        other.held(),
        pytest.raises(OutputError, match="running already"),
        Journal.open(tmp_path, ["a"]).held(),
    ):
        pass
    with Journal.open(tmp_path, ["a"]).held():
        pass
