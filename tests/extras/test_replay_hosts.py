"""Flipped bits in replays of a real step, in two processes of four devices."""

from benchmarks.faults_replay import culprits, flipped


def test_flips_are_found_and_their_device_is_named(digits_cache, tmp_path):
    """A flip is found if and only if it alters the step; the device that is named is the one that had it."""
    found = flipped(tmp_path / "job", 40)
    assert len(found) == 40 and len({each["kind"] for each in found if each["altered"]}) == 6
    for each in found:
        assert bool(each["text"]) == each["altered"], each
        if each["altered"]:
            # A gradient with another norm changes the update of all devices that have a copy between them, which also
            # compute the gradients of their rows together.
            few = 2 if each["kind"] == "gradient" or (each["kind"] == "cotangent" and each["when"] is not None) else 1
            named = culprits(each["text"])
            assert (each["device"], each["process"]) in named and len(named) <= few, each
