"""The embedded model: a small Stable Diffusion 3 pipeline trained for this package.

`StableDiffusion3Pipeline.from_pretrained(MODEL_DIR)` loads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

MODEL_DIR: Final[Path] = Path(__file__).resolve().parent / "sd3-emoji"
