"""Writing of shards on an engine: a pipeline of Apache Beam on this host, on Dataflow or on Flink.

The pipeline is one step, `shard_job.write_shard`, over the numbers of the shards. Workers write the shards and their
records into the output folder. The command that launched the pipeline reads the records and writes the index, as it
does after its own processes.
"""

import contextlib
import functools
import hashlib
import io
import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence

from tubevit import storage
from tubevit.data import shards as form
from tubevit.data.shard_job import Job, finished_part, write_shard
from tubevit.data.shard_writer import Write
from tubevit.data.warp import use_one_opencv_thread
from tubevit.errors import RunError, UserError, optional_import, unknown

logger = logging.getLogger(__name__)
_LONGEST = 500  # characters of a message of Beam
# Beam's own alias for `direct` would first try to download a runner.
RUNNERS = {
    "direct": "apache_beam.runners.portability.fn_api_runner.FnApiRunner",
    "dataflow": "apache_beam.runners.dataflow.dataflow_runner.DataflowRunner",
    "flink": "apache_beam.runners.portability.flink_runner.FlinkRunner",
}


def on_beam(runner: str, options: Sequence[str] = ()) -> Write:
    """Return what writes shards on a runner of Beam.

    Args:
        runner: a name of `RUNNERS`.
        options: pipeline options of Beam, each `NAME` or `NAME=VALUE`, e.g. `region=us-central1`.

    Raises:
        UserError: Beam is not installed, the runner or an option is unknown, or an option is missing or malformed. The
            returned function raises it if workers could not reach the files.
        RunError: the service of the runner cannot be reached, or refuses. The returned function raises it if the
            pipeline fails.
    """
    if runner not in RUNNERS:
        raise unknown("runner", runner, RUNNERS)
    optional_import("apache_beam", f"--runner {runner}", "beam")
    new_pipeline(runner, options)

    def write(job: Job, todo: list[int], advance: Callable[[int], object]) -> Iterator[tuple[int, dict]]:
        _check_paths(runner, job)
        if todo:
            pipeline = new_pipeline(runner, options)
            add_steps(pipeline, todo, *stage(job))
            _run(runner, pipeline)
        for number in todo:
            part = finished_part(job, number)
            if part is None:
                name = form.shard_name(job.split, number, job.count)
                raise RunError(f"--runner {runner}: the pipeline ended without {name}; the same command resumes")
            advance(len(part["records"]) + len(part["rejected"]))
            yield number, part
        if storage.exists(_staged_path(job)):  # also that of an earlier command, whose job went on without it
            storage.remove(_staged_path(job))

    return write


def _run(runner: str, pipeline) -> None:
    """Run a Beam pipeline to its end; raises RunError if it fails."""
    try:
        result = pipeline.run()
        if runner == "dataflow":
            logger.info(f"Dataflow job {result.job_id()}: it goes on if this command is interrupted")
        result.wait_until_finish()
    except Exception as error:  # of any type, even of the workers
        raise RunError(f"--runner {runner}: {_one_line(error)}; the same command resumes") from error


def _one_line(error: Exception) -> str:
    """Return the message of an error in one line; of a long one, such as the traceback of a worker, its end."""
    return " ".join(str(error).split())[-_LONGEST:] or type(error).__name__


def new_pipeline(runner: str, options: Sequence[str]):
    """Return an empty Beam pipeline for a runner; that of Dataflow looks at the bucket of its temporary files.

    Raises:
        UserError: an option is unknown, missing or malformed.
        RunError: the service cannot be reached, or refuses.
    """
    import apache_beam
    from apache_beam.runners.runner import create_runner

    parsed = _parse(runner, options)
    try:
        return apache_beam.Pipeline(runner=create_runner(RUNNERS[runner]), options=parsed)
    except (ValueError, ImportError) as error:  # an option or a package that the runner needs is missing
        raise UserError(f"--runner {runner}: {_one_line(error)}; pass options as --beam NAME=VALUE") from error
    except Exception as error:  # of any client of Google's
        raise RunError(f"--runner {runner}: {_one_line(error)}") from error


def _parse(runner: str, options: Sequence[str]):
    """Return Beam's `PipelineOptions`; raises UserError if one is unknown, missing or malformed."""
    from apache_beam.options.pipeline_options import PipelineOptions

    printed, flags = io.StringIO(), [f"--{option.lstrip('-')}" for option in options]
    if "--help" in flags:  # argparse would print its own
        raise UserError("--beam help: the options are those of Apache Beam, see docs/data.md")
    try:
        with contextlib.redirect_stderr(printed):
            parsed = PipelineOptions(flags)
            known, given = parsed.get_all_options(), parsed.get_all_options(retain_unknown_options=True)
    except SystemExit as error:  # argparse refuses a value
        raise UserError(f"--beam: {printed.getvalue().strip().rpartition('error: ')[2]}") from error
    if known["runner"] is not None:
        raise UserError(f"--beam runner={known['runner']}: expected the runner as --runner")
    if runner == "dataflow" and known["temp_location"] is None:  # Beam would make a bucket of its own
        raise UserError("--runner dataflow: expected --beam temp_location=gs://...")
    if runner == "dataflow" and known["sdk_container_image"] is None and known["setup_file"] is None:
        raise UserError("--runner dataflow: expected --beam sdk_container_image=IMAGE with tubevit, see docs/data.md")
    if runner != "flink":  # whose job server has further options
        for name in sorted(set(given) - set(known)):
            raise unknown("option of --beam", name, known)
    return parsed


def add_steps(pipeline, numbers: Sequence[int], path: str, digest: str) -> None:
    """Add the steps that write the given shards of a job, see `stage`, to a Beam pipeline."""
    import apache_beam as beam

    (
        pipeline
        | "numbers of shards" >> beam.Create(numbers)
        | "to all workers" >> beam.Reshuffle()
        | "write shards" >> beam.Map(write_staged, path, digest)
    )


def stage(job: Job) -> tuple[str, str]:
    """Write a job to its folder for the workers, since the list of files may be too long for a pipeline.

    Returns:
        The path and the SHA-256 of its content.
    """
    content, path = pickle.dumps(job), _staged_path(job)
    storage.write_bytes(path, content)
    return path, hashlib.sha256(content).hexdigest()


def _staged_path(job: Job) -> str:
    return storage.join(job.folder, f"{form.PARTS}/{form.file_name(job.split)}.job.pickle")


def write_staged(number: int, path: str, digest: str) -> int:
    """Write shard `number` of a staged job; returns the number. It runs on a worker.

    Raises:
        RunError: the staged job is not the one that was launched.
        OSError: it cannot be read, or the shard cannot be written.
    """
    job, order = _staged_job(path, digest)
    from apache_beam.metrics import Metrics

    write_shard(job, number, order, Metrics.counter("tubevit", "files").inc)
    return number


@functools.lru_cache(1)
def _staged_job(path: str, digest: str) -> tuple[Job, list[int]]:
    use_one_opencv_thread()
    content = storage.read_bytes(path)
    if hashlib.sha256(content).hexdigest() != digest:  # checked before anything in it is run
        raise RunError(f"{path} was changed by another command")
    job = pickle.loads(content)
    return job, job.order()


def _check_paths(runner: str, job: Job) -> None:
    """Raise UserError if workers on other hosts could not read the source or write to the folder."""
    if runner == "direct":
        return
    # Workers of Flink may share a file system. Then the staged job in the folder shows it.
    shared = runner == "flink" and not storage.is_remote(job.folder)
    expected = "an absolute path" if shared else "a path such as gs://..."
    keys = job.source.keys if job.source.read is None else [] if shared else [job.source.name]
    for path in (job.folder, *keys):
        if not (storage.is_remote(path) or (shared and os.path.isabs(path))):
            raise UserError(f"--runner {runner}: workers on other hosts cannot reach {path}; expected {expected}")
