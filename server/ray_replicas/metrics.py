"""The metrics of all replicas in one answer. Independent of Ray."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from prometheus_client import Metric
from prometheus_client.samples import Sample

REPLICA_LABEL = "replica"


class ReplicaMetrics(NamedTuple):
    """The metrics of one replica."""

    replica: str
    families: Sequence[Metric]


class AllReplicas:
    """Collector that `Metrics.exposition` shows instead of one process's registry. Samples name their replica.

    Args:
        ask: returns the metrics of every replica.
    """

    def __init__(self, ask: Callable[[], Iterable[ReplicaMetrics]]) -> None:
        self._ask = ask

    def collect(self) -> Iterator[Metric]:
        """The metric families, each once, with the samples of all replicas."""
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
