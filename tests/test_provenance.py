"""What stands beside a number."""

import json
import os
import re
import sys

import numpy as np
import pytest

from kunlun_jax import provenance
from kunlun_jax.provenance import command, environment


def test_environment_names_what_a_number_depends_on():
    values = environment()
    assert set(provenance.VERSIONS_OF) == set(values["versions"])
    assert values["devices"] == 8
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?|unknown", values["commit"])
    json.dumps(values)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not confine a process")
def test_processors_that_a_process_may_not_use_do_not_count():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        found = environment()
    finally:
        os.sched_setaffinity(0, allowed)
    assert found["usable_cpus"] == 1 and found["cpu_count"] == os.cpu_count()


def test_a_command_names_no_folder_of_a_machine(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--data.root", "/data/KuaiRand-Pure", "--rows", "a b", "x/y"])
    assert command().endswith(" --data.root KuaiRand-Pure --rows 'a b' x/y")


def test_outside_a_checkout_the_commit_is_the_one_that_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # where no git is
    assert provenance.commit() == "unknown"
    monkeypatch.setenv("KUNLUN_COMMIT", "4e1c")
    assert provenance.commit() == "4e1c"


def test_a_package_that_is_not_installed_is_absent():
    versions = provenance.process(["numpy", "no_such_package"])["versions"]
    assert versions == {"numpy": np.__version__, "no_such_package": "absent"}
