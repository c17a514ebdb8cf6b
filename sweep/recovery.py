"""What the next attempt does differently after a failure that has a remedy. Pure.

A device's memory that was too small: half as many tokens at once, twice as often. The optimiser's step, its rows
and its mean stay what they were; only the order of float sums changes, as with train.micro_batch_tokens itself.
"""

import dataclasses

from sweep.spec import RunSpec
from train.record import RunRecord

MAX_HALVINGS = 6
MAX_DOUBLINGS = 2  # of a job's memory
REMEDIES = {"cuda_oom": MAX_HALVINGS, "node_fail": 4}  # whatever starts the workers
CLUSTER_REMEDIES = {**REMEDIES, "host_oom": MAX_DOUBLINGS}  # where more memory can be asked for


def smaller_batches(spec: RunSpec, num_halvings: int) -> RunSpec:
    """The run with its micro-batches halved so often; itself for 0."""
    if not num_halvings:
        return spec
    tokens = max(1, spec.config.train.micro_batch_tokens >> num_halvings)
    recipe = dataclasses.replace(spec.config.train, micro_batch_tokens=tokens)
    return dataclasses.replace(spec, config=dataclasses.replace(spec.config, train=recipe))


def with_remedy(record: RunRecord, spec: RunSpec, num_halvings: int) -> RunRecord:
    """The record, saying which micro-batches it took; `spec` is what was trained."""
    if not num_halvings:
        return record
    environment = {**record.environment, "micro_batch_tokens": spec.config.train.micro_batch_tokens}
    return dataclasses.replace(record, environment=environment)
