"""The world of the embedded model: scenes, their captions, what can be checked of a picture.

Needs neither pictures nor torch.
"""

from ras_dit.world.checks import (
    Check,
    ColourCheck,
    ObjectCheck,
    PatternCheck,
    PositionCheck,
    checks,
)
from ras_dit.world.grammar import caption, parse, vocabulary
from ras_dit.world.objects import COLOURS, OBJECTS, SHAPES
from ras_dit.world.sampling import (
    Mixture,
    evaluation_prompts,
    evaluation_scenes,
    held_out,
    sample_scene,
)
from ras_dit.world.scene import Background, Scene, Thing

__all__ = [
    "COLOURS",
    "OBJECTS",
    "SHAPES",
    "Background",
    "Check",
    "ColourCheck",
    "Mixture",
    "ObjectCheck",
    "PatternCheck",
    "PositionCheck",
    "Scene",
    "Thing",
    "caption",
    "checks",
    "evaluation_prompts",
    "evaluation_scenes",
    "held_out",
    "parse",
    "sample_scene",
    "vocabulary",
]
