"""Region-adaptive sampling for diffusion transformers, on diffusers pipelines.

``ras_dit.enable(pipe)`` makes a pipeline faster: in most steps only the image tokens that still
need work go through the transformer. The method is that of *Region-Adaptive Sampling for
Diffusion Transformers* (arXiv 2502.10389).
"""

from importlib.metadata import version as _version

from ras_dit.adapters import TransformerDescription
from ras_dit.config import RASConfig
from ras_dit.errors import RASError, RASWarning, UnsupportedError
from ras_dit.patch import Handle, disable, enable
from ras_dit.recording import Recording
from ras_dit.summary import Summary, summary
from ras_dit.trace import StepTrace, Trace
from ras_dit.verification import Verification, verify

__all__ = [
    "Handle",
    "RASConfig",
    "RASError",
    "RASWarning",
    "Recording",
    "StepTrace",
    "Summary",
    "Trace",
    "TransformerDescription",
    "UnsupportedError",
    "Verification",
    "disable",
    "enable",
    "summary",
    "verify",
]


def __getattr__(name: str) -> str:
    """``__version__``, read when it is asked for: a source tree need not be installed."""
    if name == "__version__":
        return _version("ras-dit")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
