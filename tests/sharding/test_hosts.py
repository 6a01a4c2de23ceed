"""Start-up of processes, and what one does for all, without a second one: see extras/test_hosts_training.py."""

import types

import jax
import pytest

from tubevit.cli import main
from tubevit.errors import RunError, UserError
from tubevit.sharding import hosts


@pytest.fixture
def initialised(monkeypatch):
    """The arguments that `jax.distributed.initialize` got."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **kwargs: calls.append((args, kwargs)))
    return calls


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((None, 2, 0), "go together; missing --coordinator$"),
        (("localhost:80", None, None), "go together; missing --num-processes, --process-id$"),
        (("localhost:80", 2, None), "missing --process-id$"),
        (("localhost", 2, 0), "--coordinator must be HOST:PORT, the port 1 to 65535; found 'localhost'"),
        ((":80", 2, 0), "--coordinator must be HOST:PORT, the port 1 to 65535; found ':80'"),
        (("localhost:http", 2, 0), "--coordinator must be HOST:PORT, the port 1 to 65535; found 'localhost:http'"),
        (("localhost:80", 2, 2), "--process-id must be 0 to --num-processes - 1; found 2 of 2"),
        (("localhost:80", 2, -1), "found -1 of 2"),
        (("localhost:80", 0, 0), "found 0 of 0"),
    ],
)
def test_bad_flags(initialised, arguments, message):
    with pytest.raises(UserError, match=message):
        hosts.start(*arguments)
    assert not initialised


@pytest.mark.parametrize("verb", [["train", "--config", "quickstart", "--workdir", "run"], ["inspect", "vit_ti16"]])
def test_bad_flags_of_any_verb(initialised, capsys, verb):
    assert main([*verb, "--process-id", "1"]) == 2
    _, err = capsys.readouterr()
    assert err.count("\n") == 1 and "missing --coordinator, --num-processes" in err and not initialised


def test_given_processes_are_connected(initialised):
    hosts.start("[::1]:1234", 4, 3)
    ((arguments, settings),) = initialised
    assert arguments == ("[::1]:1234", 4, 3)
    # What scale.md measured: a dead process is to be noticed within 100 s.
    assert settings == {"heartbeat_timeout_seconds": 30, "shutdown_timeout_seconds": 60}


def test_a_process_alone(initialised, monkeypatch):
    monkeypatch.setattr(hosts, "_on_tpu_vm", lambda: False)
    hosts.start()
    assert not initialised
    monkeypatch.setattr(hosts, "_on_tpu_vm", lambda: True)
    hosts.start()  # finds the others by itself
    assert [arguments for arguments, _ in initialised] == [()]


@pytest.mark.parametrize("device", ["accel0", "vfio/0"])
def test_a_tpu_vm_is_known_by_its_devices(monkeypatch, tmp_path, device):
    def package(spec):
        util = types.SimpleNamespace(find_spec=lambda name: spec)
        monkeypatch.setattr(hosts, "importlib", types.SimpleNamespace(util=util))

    here = types.SimpleNamespace(Path=lambda path: tmp_path / path.removeprefix("/dev").lstrip("/"))
    monkeypatch.setattr(hosts, "pathlib", here)
    monkeypatch.delenv("JAX_PLATFORMS")
    package("libtpu")
    (tmp_path / "vfio").mkdir()
    (tmp_path / "vfio/vfio").touch()  # is there without a TPU too
    assert not hosts._on_tpu_vm()
    (tmp_path / device).touch()
    assert hosts._on_tpu_vm()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # a run on such a machine's CPU
    assert not hosts._on_tpu_vm()
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    assert hosts._on_tpu_vm()
    package(None)
    assert not hosts._on_tpu_vm()


class Coordinator:
    """As the one of `jax.distributed`: a key is set once, a reader waits for it."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, key, value):
        assert key not in self.values
        self.values[key] = value

    def blocking_key_value_get(self, key, timeout):
        return self.values[key]


@pytest.fixture
def two(monkeypatch):
    """`two(function)`: the outcomes of `run_on_main(function)` in process 0 and in process 1."""
    here = types.SimpleNamespace(index=0, numbers=[0, 0])
    coordinator = Coordinator()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: here.index)
    monkeypatch.setattr(hosts.multihost, "get_jax_distributed_client", lambda: coordinator)

    def run(function):
        outcomes = []
        for here.index in range(2):
            monkeypatch.setattr(hosts, "_numbers", iter([here.numbers[here.index]]))
            here.numbers[here.index] += 1
            try:
                outcomes.append(hosts.run_on_main(function))
            except Exception as error:
                outcomes.append(error)
        return outcomes

    return run


def failing(error):
    def function():
        raise error

    return function


def test_process_0_does_it_for_all(two):
    calls = []
    assert two(lambda: calls.append(1) or {"step": 3}) == [{"step": 3}] * 2
    assert two(lambda: None) == [None, None] and calls == [1]  # a key of its own for each call


@pytest.mark.parametrize("kind", [UserError, RunError])
def test_an_error_is_that_of_all(two, kind):
    first, second = two(failing(kind("no such folder")))
    assert type(first) is type(second) is kind and str(first) == str(second) == "no such folder"


def test_a_defect_is_named_in_all(two):
    first, second = two(failing(KeyError("width")))
    assert type(first) is KeyError and type(second) is RunError
    assert str(second) == "process 0 failed: KeyError: 'width'"


def test_alone_nothing_is_sent(monkeypatch):
    assert hosts.run_on_main(lambda: {1, 2}) == {1, 2}  # need not be JSON
    with pytest.raises(KeyError):
        hosts.run_on_main(failing(KeyError("width")))


def test_one_of_several_ends_at_once(monkeypatch):
    codes = []
    monkeypatch.setattr(hosts.os, "_exit", codes.append)
    hosts.end_at_once(2)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    hosts.end_at_once(2)  # the only process of its job
    assert codes == []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    hosts.end_at_once(2)
    assert codes == [2]
