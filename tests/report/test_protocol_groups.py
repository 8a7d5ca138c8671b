"""What a protocol compares can share a job."""

import pytest

from edgevit.report.protocols import PROTOCOLS
from edgevit.verbs.runs import TOGETHER


@pytest.mark.parametrize("name", PROTOCOLS)
def test_rows_are_in_one_group_and_so_are_those_of_a_claim(name):
    protocol = PROTOCOLS[name]
    assert sum(len(group) for group in protocol.groups) == len(protocol.subjects)
    for claim in protocol.claims:
        (group,) = [group for group in protocol.groups if claim.better in group]
        assert claim.than in group
        # More share no job, and times of several jobs are not to be compared.
        assert claim.metric == "memory" or len(group) <= TOGETHER
