"""The metrics of all replicas in one answer. Knows nothing of Ray."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from prometheus_client import Metric
from prometheus_client.samples import Sample

REPLICA_LABEL = "replica"


class ReplicaMetrics(NamedTuple):
    """What one replica has counted."""

    replica: str
    families: Sequence[Metric]


class AllReplicas:
    """What `Metrics.exposition` shows in place of one process' registry: each sample with the name of its replica.

    Args:
        ask: gives the metrics of every replica.
    """

    def __init__(self, ask: Callable[[], Iterable[ReplicaMetrics]]) -> None:
        self._ask = ask

    def collect(self) -> Iterator[Metric]:
        """Families, each once."""
        merged: dict[str, Metric] = {}
        for replica, families in self._ask():
            for family in families:
                target = merged.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type, family.unit)
                )
                target.samples += [_labelled(sample, replica) for sample in family.samples]
        yield from merged.values()


def _labelled(sample: Sample, replica: str) -> Sample:
    return sample._replace(labels={**sample.labels, REPLICA_LABEL: replica})
