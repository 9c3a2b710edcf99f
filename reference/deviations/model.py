"""Another model, or less of it."""

from __future__ import annotations

from auditor.errors import OptionError
from auditor.reference.deviations.base import Deviation
from auditor.reference.loading import ReferenceModel


def _skip_middle(model: ReferenceModel, other: ReferenceModel | None) -> ReferenceModel:
    del other
    return model.replace(skip_layers=frozenset({model.config.num_hidden_layers // 2}))


def _substitute(model: ReferenceModel, other: ReferenceModel | None) -> ReferenceModel:
    del model
    if other is None:
        raise OptionError("substituting a model needs one to substitute", fix="name a second model directory")
    return other


DEVIATIONS = (
    Deviation(
        name="depth/skip-layer",
        gain="one layer's compute and cache",
        source="static layer dropping; Elhoushi et al., LayerSkip, arXiv 2404.16710",
        model=_skip_middle,
    ),
    Deviation(
        name="model/substituted",
        gain="the price difference between the model sold and the model run",
        source="DiFR, arXiv 2511.20621 (threat model)",
        model=_substitute,
        needs_other_model=True,
    ),
)
