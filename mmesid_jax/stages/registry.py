"""The stages of the pipeline, in the order in which they run.

A new stage, a baseline for example, is a file with a `Stage`, a line here, and a section of the
configuration (config/schema.py).
"""

from mmesid_jax.stages.blend_stage import BLEND
from mmesid_jax.stages.collaborative_stage import COLLABORATIVE
from mmesid_jax.stages.evidence_stages import CONTENT, COUNTS
from mmesid_jax.stages.recommender_stage import RECOMMENDER
from mmesid_jax.stages.semantic_id_stage import SEMANTIC_IDS
from mmesid_jax.stages.stage import Stage

STAGES: dict[str, Stage] = {
  s.name: s for s in (COUNTS, CONTENT, COLLABORATIVE, SEMANTIC_IDS, RECOMMENDER, BLEND)
}

# The stages whose models rank items, in the order of the tables of results.
MODELS: dict[str, Stage] = {name: stage for name, stage in STAGES.items() if stage.model_name}
