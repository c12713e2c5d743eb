"""Fake engine with a limited number of slots and realistic step times."""

import time
from dataclasses import dataclass

from support.engine import FakeEngine

from superdraft.decoding.outputs import StepOutput


@dataclass
class SlottedEngine(FakeEngine):
    """Serves `num_slots` requests at a time, first come, first served, like the real scheduler."""

    num_slots: int = 8
    step_s: float = 0.005
    most_jobs: int = 0

    def step(self) -> list[StepOutput]:
        time.sleep(self.step_s)
        self.most_jobs = max(self.most_jobs, len(self.jobs))
        behind = dict(list(self.jobs.items())[self.num_slots :])
        for name in behind:
            del self.jobs[name]
        outputs = super().step()
        self.jobs.update(behind)
        return outputs
