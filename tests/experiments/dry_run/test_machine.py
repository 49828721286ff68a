"""Bytes by link, against a count of every transfer between every two devices, and what fits."""

import pytest

from experiments.dry_run.fit import fits, remedies
from experiments.dry_run.hlo import Collective
from experiments.dry_run.machine import MACHINES, sent, summary
from pallas_kernels.chips import B200, H100

ALL = tuple(range(16))


def test_an_all_to_all_sends_each_other_device_its_part():
    per_host, whole = 4, 1600.0
    links = {"nvlink": 0.0, "network": 0.0}
    for other in ALL[1:]:
        links["nvlink" if other < per_host else "network"] += whole / len(ALL)
    assert sent(Collective("all-to-all", whole, (), 1), len(ALL), per_host) == pytest.approx(links)
    assert sent(Collective("all-to-all", whole, (ALL,), 3), len(ALL), per_host) == pytest.approx(
        {link: 3 * number for link, number in links.items()}
    )


@pytest.mark.parametrize(("kind", "rounds"), [("all-reduce", 2), ("all-gather", 1), ("reduce-scatter", 1)])
def test_what_adds_or_gathers_crosses_the_network_once(kind, rounds):
    # Four hosts of four: a device sends three quarters within its host, and of its own quarter three parts abroad.
    found = sent(Collective(kind, 1600.0, (), 1), 16, 4)
    assert found == pytest.approx({"nvlink": rounds * 1200.0, "network": rounds * 300.0})
    inside = sent(Collective(kind, 1600.0, tuple(tuple(range(n, n + 4)) for n in range(0, 16, 4)), 1), 16, 4)
    assert inside == pytest.approx({"nvlink": rounds * 1200.0, "network": 0.0})
    across = sent(Collective(kind, 1600.0, tuple(tuple(range(n, 16, 4)) for n in range(4)), 1), 16, 4)
    assert across == pytest.approx({"nvlink": 0.0, "network": rounds * 1200.0})


def test_a_permutation_crosses_the_network_where_a_pair_does():
    near, far = ((0, 1), (1, 0)), ((0, 1), (1, 4))
    assert sent(Collective("collective-permute", 8.0, near, 1), 8, 4) == {"nvlink": 8.0, "network": 0.0}
    assert sent(Collective("collective-permute", 8.0, far, 1), 8, 4) == {"nvlink": 0.0, "network": 8.0}


def test_groups_that_are_uneven_over_hosts_are_refused():
    with pytest.raises(ValueError, match="unequal shares"):
        sent(Collective("all-reduce", 8.0, ((0, 1, 4),), 1), 8, 4)
    with pytest.raises(ValueError, match="different ways"):
        sent(Collective("all-reduce", 8.0, ((0, 1), (2, 4)), 1), 8, 4)


def test_a_row_for_each_kind_and_size():
    ring = Collective("all-reduce", 80.0, (), 1)
    (row,) = summary([ring, ring], 8, 8)
    assert row == {"kind": "all-reduce", "group_size": 8, "runs": 2, "bytes": 160.0, "nvlink": 280.0, "network": 0.0}
    assert len(summary([ring, Collective("all-reduce", 80.0, ((0, 1),), 1)], 8, 8)) == 2


def test_the_chips_are_those_of_the_datasheets():
    assert {name: machine.chip for name, machine in MACHINES.items()} == {"h100": H100, "b200": B200}
    assert {name: machine.memory for name, machine in MACHINES.items()} == {"h100": 80e9, "b200": 180e9}


def row(examples=1000, **memory):
    kinds = ("parameters", "optimizer state", "tables", "table optimizer state", "batch", "temporaries")
    return {"examples": examples, "memory": dict.fromkeys((*kinds, "results beside the state", "code"), 0) | memory}


def test_fewer_examples_are_named_that_do_fit():
    found, machine = row(parameters=10 * 10**9, temporaries=200 * 10**9, batch=10 * 10**9), MACHINES["b200"]
    assert not fits(found, machine)
    text = remedies(found, machine)
    assert text.startswith(
        "needs 220.0 GB a device, and a B200 gives 165.6 GB (92% of 180); about 736 examples a device"
    )
    assert "at least 2 times as many devices" in text
    smaller = {name: size * 736 // 1000 for name, size in found["memory"].items()} | {"parameters": 10 * 10**9}
    assert fits({**found, "memory": smaller}, machine)
    assert fits(found | {"memory": {"temporaries": 165 * 10**9}}, machine)


def test_tables_and_parameters_too_large_have_other_remedies():
    machine = MACHINES["h100"]
    assert "more devices, a smaller model.embedding_dim" in remedies(row(tables=90 * 10**9, batch=1), machine)
    assert "a smaller model" in remedies(row(parameters=90 * 10**9, batch=1), machine)
