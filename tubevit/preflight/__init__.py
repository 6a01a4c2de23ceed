"""Compiles an experiment's steps for TPU slices and GPUs that are not here, and says what they need.

`topology` names devices, `program` makes the steps, `devices` and `worker` compile them in another process, `hlo` and
`costs` read what came out, `report` says it, `run` puts it together.
"""
