"""Serve requests in batches, as an example, and measure latency and throughput with clients in threads.

    python benchmarks/serve.py [--requests 400]      # about a minute on 2 cores

The model is tubevit_nano8 with random weights, exported for jax (docs/export.md) and loaded again. A request is one
clip of 16x64x64. Each client sends its next request after the answer to the previous one. The server is compared with
one that processes requests one by one. Results are appended to benchmarks/serve.csv.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import csv
import datetime
import os
import pathlib
import queue
import tempfile
import threading
import time

import jax
import numpy as np

import tubevit
from tubevit.convert.export import export_jax, load_exported

CLIENTS = (1, 4, 8, 16)
SIZES = (1, 2, 4, 8)


class Server:
    """Answer the requests of many threads with one call of the model per batch of requests.

    Args:
        call: uint8 (b, *shape) -> (b, classes); one of `ExportedModel`.
        shape: The shape of a request.
        sizes: Batch sizes b in ascending order. Each is compiled once at the start; batches are padded with zeros.
        max_wait: Maximum seconds that the first request of a batch waits for more requests.
    """

    def __init__(self, call, shape, sizes=SIZES, max_wait=0.005):
        self.call, self.shape, self.sizes, self.max_wait = call, shape, sizes, max_wait
        self.batches: list[int] = []  # number of requests in each batch so far
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        for size in sizes:
            jax.block_until_ready(call(np.zeros((size, *shape), np.uint8)))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, clip: np.ndarray) -> concurrent.futures.Future:
        """Return the probabilities of a clip, (classes,), when they are ready."""
        if clip.shape != self.shape or clip.dtype != np.uint8:  # it would spoil the other answers of the batch
            raise ValueError(f"expected uint8 {self.shape}; found {clip.dtype} {clip.shape}")
        future = concurrent.futures.Future()
        self._queue.put((clip, future))
        return future

    def close(self) -> None:
        """Stop the thread after all submitted requests are answered."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            requests, last = [first], False
            end = time.monotonic() + self.max_wait
            while len(requests) < self.sizes[-1] and not last:
                try:
                    request = self._queue.get(timeout=max(end - time.monotonic(), 0))
                except queue.Empty:
                    break
                last = request is None
                requests += [] if last else [request]
            self._answer(*zip(*requests))
            if last:
                return

    def _answer(self, clips, futures) -> None:
        self.batches.append(len(clips))
        try:
            batch = np.zeros((next(size for size in self.sizes if size >= len(clips)), *self.shape), np.uint8)
            batch[: len(clips)] = clips
            answers = np.asarray(self.call(batch))
        except Exception as error:  # these requests fail, but the server continues
            for future in futures:
                future.set_exception(error)
            return
        for future, answer in zip(futures, answers):
            future.set_result(answer)


def measure(server: Server, clients: int, requests: int) -> dict:
    """Measure latencies in ms and requests per second for clients that send `requests` requests in total."""

    def client(seed: int) -> list[float]:
        clip = np.random.default_rng(seed).integers(0, 256, server.shape, np.uint8)
        seconds = []
        for _ in range(max(requests // clients, 1)):
            start = time.perf_counter()
            server.submit(clip).result()
            seconds.append(time.perf_counter() - start)
        return seconds

    server.batches.clear()
    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        latencies = np.concatenate(list(pool.map(client, range(clients))))
    took = time.perf_counter() - start
    p50, p95 = np.percentile(1e3 * latencies, (50, 95))
    return {
        "clients": clients, "max_batch": server.sizes[-1], "mean_batch": round(np.mean(server.batches), 2),
        "p50_ms": round(p50, 1), "p95_ms": round(p95, 1), "requests_per_s": round(len(latencies) / took, 1),
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=400, help="number of requests for each load")
    parser.add_argument("--max-wait-ms", type=float, default=5.0)
    parser.add_argument("--out", default=str(pathlib.Path(__file__).with_suffix(".csv")))
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        export_jax(tubevit.create_model("tubevit_nano8", num_classes=8), f"{folder}/model")
        model = load_exported(f"{folder}/model")
    rows = []
    for sizes in ((1,), SIZES):
        server = Server(model, model.shape, sizes, args.max_wait_ms / 1e3)
        for clients in CLIENTS:
            rows.append(measure(server, clients, args.requests))
            print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
        server.close()
    record(rows, pathlib.Path(args.out), args.max_wait_ms)


def record(rows: list[dict], path: pathlib.Path, max_wait: float) -> None:
    about = {"date": datetime.date.today().isoformat(), "jax": jax.__version__, "device": jax.devices()[0].device_kind,
             "cpus": os.cpu_count(), "load_average": round(os.getloadavg()[0], 1), "max_wait_ms": max_wait}  # fmt: skip
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [*about, *rows[0]])
        if new:
            writer.writeheader()
        writer.writerows(about | row for row in rows)


if __name__ == "__main__":
    main()
