"""Machine facts are data that a report can hold, and are of this machine."""

from __future__ import annotations

import json
import os
import platform

import torch

from tersor.runtime.machine import machine_facts, read_bandwidth


def test_facts_are_json_and_of_this_process() -> None:
    facts = machine_facts(bandwidth=False)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert facts["versions"]["python"] == platform.python_version()
    assert 1 <= facts["cores"] <= (os.cpu_count() or 1)
    assert "read_bandwidth_gb_s" not in facts


def test_bandwidth_is_measured_once_and_is_one_that_a_machine_can_have() -> None:
    first = read_bandwidth()
    assert 1e8 < first < 1e13
    assert read_bandwidth() == first
