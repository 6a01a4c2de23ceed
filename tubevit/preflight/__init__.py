"""Compile the steps of an experiment for TPU slices and GPUs that this machine lacks, and report what they need.

`topology` names devices, `program` builds the steps, `devices` and `worker` compile them in another process, `hlo` and
`costs` analyse the compiled programs, `report` prints the result, and `run` drives everything.
"""
