"""What stands beside a number."""

import json
import re
import sys

from kunlun_jax import provenance
from kunlun_jax.provenance import command, environment


def test_environment_names_what_a_number_depends_on():
    values = environment()
    assert set(provenance.VERSIONS_OF) == set(values["versions"])
    assert values["devices"] == 4
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?|unknown", values["commit"])
    json.dumps(values)


def test_a_command_names_no_folder_of_a_machine(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--data.root", "/data/KuaiRand-Pure", "--rows", "a b", "x/y"])
    assert command().endswith(" --data.root KuaiRand-Pure --rows 'a b' x/y")
