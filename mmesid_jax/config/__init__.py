"""The configuration. Config files need `default_config`, `apply_preset` and PROMPTS from here."""

from mmesid_jax.config.presets import PROMPTS
from mmesid_jax.config.schema import apply_preset, default_config

__all__ = ["PROMPTS", "apply_preset", "default_config"]
