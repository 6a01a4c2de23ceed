"""The example of a server: each client gets its own answer, batches have fixed sizes, failures fail alone."""

import csv
import threading

import numpy as np
import pytest

import tubevit
from tests.scripts import script


@pytest.fixture(scope="module")
def serve():
    return script("benchmarks/serve.py")


def test_each_request_has_its_own_answer(serve):
    """Requests that wait while the model is busy are answered together, padded to one of the sizes."""
    seen, go = [], threading.Event()

    def call(pixels):
        seen.append(len(pixels))
        if len(seen) > 3 and not go.wait(10):
            raise TimeoutError
        return pixels.astype(np.int64).sum(axis=1)

    server = serve.Server(call, (2,), sizes=(1, 2, 4), max_wait=60)
    assert seen == [1, 2, 4]  # compiled before the first request
    futures = [server.submit(np.array([i, 2 * i], np.uint8)) for i in range(11)]
    go.set()
    server.close()
    assert [future.result(10) for future in futures] == [3 * i for i in range(11)]
    assert server.batches == [4, 4, 3] and seen[3:] == [4, 4, 4]


def test_a_lonely_request_does_not_wait_for_others(serve):
    server = serve.Server(lambda pixels: pixels, (1,), max_wait=0.001)
    assert server.submit(np.array([7], np.uint8)).result(10) == 7 and server.batches == [1]
    server.close()


def test_failures_reach_the_client_and_the_server_goes_on(serve):
    def call(pixels):
        if pixels.max() == 9:
            raise ValueError("nine")
        return pixels

    server = serve.Server(call, (2,), sizes=(1,))
    bad, good = (server.submit(np.array(x, np.uint8)) for x in ([9, 0], [1, 2]))
    with pytest.raises(ValueError, match="nine"):
        bad.result(10)
    for wrong in (np.zeros(1, np.uint8), np.zeros(2)):  # the first would be broadcast, the second cast
        with pytest.raises(ValueError, match=r"expected uint8 \(2,\); found"):
            server.submit(wrong)
    np.testing.assert_array_equal(good.result(10), [1, 2])
    server.close()


def test_it_runs(serve, tiny, tmp_path, monkeypatch, capsys):
    small = tiny(8, depth=1, tubes="4x8x8/8x16x16", frames=8, size=32)
    monkeypatch.setattr(tubevit, "create_model", lambda name, **fields: small)
    monkeypatch.setattr(serve, "CLIENTS", (2,))
    monkeypatch.setattr(serve, "SIZES", (1, 2))
    out = tmp_path / "out.csv"
    serve.main(["--requests", "12", "--out", str(out)])
    alone, together = csv.DictReader(out.open())
    assert (alone["max_batch"], alone["mean_batch"], together["max_batch"]) == ("1", "1.0", "2")
    assert 1 <= float(together["mean_batch"]) <= 2 and capsys.readouterr().out.count("p95_ms") == 2
    for row in (alone, together):
        assert 0 < float(row["p50_ms"]) <= float(row["p95_ms"]) and float(row["requests_per_s"]) > 0
