# The image of the workers of `tubevit shard-videos --runner dataflow` and `--runner flink`: see docs/data.md.
# In a checkout:
#     docker build -f launch/beam.Dockerfile -t NAME .
# Python must be the version that launches the pipeline; Beam and all others are those of constraints-beam.txt.
ARG PYTHON=3.11
FROM apache/beam_python${PYTHON}_sdk:2.77.0
COPY setup.py pyproject.toml README.md constraints-beam.txt /tubevit/
COPY tubevit /tubevit/tubevit
COPY experiments /tubevit/experiments
COPY checkpoints /tubevit/checkpoints
RUN pip install --no-cache-dir -c /tubevit/constraints-beam.txt '/tubevit[beam]'
