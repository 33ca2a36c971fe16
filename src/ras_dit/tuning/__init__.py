"""Search of a preset for a budget: steps, what each of them computes, forecasts, noise levels.

``ras-dit tune``, or::

    found = tune(Gauge(pipe, job), Gauge(pipe, other_job), Target(cost=12.0))
"""

from ras_dit.tuning.calibrate import Tuned, Tuning, tune
from ras_dit.tuning.candidates import Candidate
from ras_dit.tuning.gauge import Gauge, Measured
from ras_dit.tuning.target import Target

__all__ = ["Candidate", "Gauge", "Measured", "Target", "Tuned", "Tuning", "tune"]
