def test_listing(edgevit):
    outcome = edgevit("models")
    assert outcome.code == 0
    assert "elevit " in outcome.out
    assert "23.43 M" in outcome.out
    assert outcome.err == ""


def test_a_pattern(edgevit):
    outcome = edgevit("models", "elevit_*noff", "--json")
    assert [entry["name"] for entry in outcome.json] == [
        "elevit_fvdot_noff",
        "elevit_noff",
        "elevit_qkdot_fvdot_noff",
        "elevit_qkdot_noff",
    ]


def test_one_in_detail(edgevit):
    outcome = edgevit("models", "elevit")
    assert "params       23,425,310" in outcome.out
    assert edgevit("models", "elevit", "--json").json["macs"] == 2333389824


def test_blocks(edgevit):
    names = [entry["name"] for entry in edgevit("models", "--blocks", "--json").json]
    assert {"elementwise", "softmax"} <= set(names)


def test_an_unknown_name_suggests_and_exits_with_2(edgevit):
    outcome = edgevit("models", "elvit")
    assert (outcome.code, outcome.out) == (2, "")
    assert "unknown model 'elvit'" in outcome.err
    assert "did you mean elevit" in outcome.err


def test_a_pattern_that_matches_nothing(edgevit):
    assert edgevit("models", "nothing_*").code == 2
    assert edgevit("models", "--blocks", "nothing_*").code == 2
