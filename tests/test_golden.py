"""Short runs, and outputs of the bundled MiniLM, are to the bit what they were when golden.json was written.

Only on that kind of processor and with that version of PyTorch: others round differently. Here each kind of balancing
runs once, each strategy of freezing at least once; `python tests/golden.py` compares all of them.
"""

import itertools
import json

import golden
import pytest


@pytest.mark.usefixtures("one_thread")
def test_no_bit_has_changed(monkeypatch):
    if not golden.FILE.exists():
        pytest.skip(f"no {golden.FILE.name}: python tests/golden.py --save writes it")
    recorded, machine = json.loads(golden.FILE.read_text()), golden.machine()
    for name in ("processor", "capability", "torch"):
        if recorded["machine"][name] != machine[name]:
            pytest.skip(f"the {name} is {machine[name]!r}, golden.json is of {recorded['machine'][name]!r}")
    runs = list(zip(golden.BALANCING, itertools.cycle(golden.STRATEGIES), itertools.repeat(False)))
    monkeypatch.setattr(golden, "product", lambda *_: runs)
    fingerprints = golden.golden()
    compared = fingerprints.keys() & recorded["fingerprints"].keys()
    assert len(compared) > 2 * len(runs)
    assert [name for name in compared if fingerprints[name] != recorded["fingerprints"][name]] == []
