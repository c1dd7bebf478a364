"""Falcon3-Audio for transformers: importing this package registers the Auto classes and the pipeline.

from transformers import AutoModelForMultimodalLM, AutoProcessor, pipeline
import falcon3_audio
"""

from importlib.util import find_spec


# `falcon3_audio.evaluation.score` works without torch; everything else needs it.
if find_spec("torch") is not None:
    from .registration import *  # noqa: F403
    from .registration import __all__ as __all__
