"""Plans: what is refused without the weights, and what a plan says of a conversion."""

import numpy as np
import pytest

from tests.conftest import random_whisper
from whisper_mla.conversion import ConversionError, from_whisper
from whisper_mla.conversion.plan import _REFUSALS, Plan
from whisper_mla.conversion.ranks.budget import Budget

FIELDS = {"kv_rank": 8, "cross_kv_rank": None, "cross_kv_shared": True, "audio_kv_rank": None, "cross_cache": "latent"}
OTHERS = {"processor": None, "language": None, "task": None, "refit": None, "sequential": False, "force": False}


@pytest.fixture(scope="module")
def config_alone(tmp_path_factory):
    """A folder that says what a model would be, without any weights."""
    folder = tmp_path_factory.mktemp("config")
    random_whisper().config.save_pretrained(folder)
    return folder


def plan_for(source, budget=None, options=None, **arguments):
    fields = {name: arguments.pop(name, value) for name, value in FIELDS.items()}
    return Plan.from_arguments(source, fields, Budget(**(budget or {})), options or {}, **{**OTHERS, **arguments})


# One case for each row of the table, in its order; "nowhere" would not be found either.
REFUSED = [
    ({"latent_dtype": "mixed", "method": "covariance", "calibration": "nowhere"}, "needs method='fisher' without"),
    ({"latent_dtype": "mixed", "kv_rank": 8}, "settles kv_rank, cross_kv_rank, cross_kv_shared, cross_cache"),
    ({"latent_dtype": "mixed", "max_kl": 0.1}, "takes cache_cut or cache_bytes, not max_kl"),
    ({"kv_rank": 8, "refit": True, "method": "covariance", "calibration": "nowhere"}, "not method='covariance'"),
    ({"max_kl": 0.1, "refit": True, "calibration": "nowhere"}, "could break max_kl"),
    ({"cache_cut": 0.9, "cross_kv_shared": False}, "A budget needs the shared cross-attention latent"),
    ({"cache_cut": 0.9, "kv_rank": 8, "cross_kv_rank": 8}, "A budget chooses kv_rank, cross_kv_rank, or both"),
    ({"kv_rank": 8, "latent_dtype": "auto"}, "latent_dtype='auto' is chosen under a budget"),
    ({"cache_cut": 0.9, "preserved_key_dims": 1}, "preserved_key_dims needs given ranks"),
    ({"kv_rank": 8, "preserved_key_selection": "2-norm"}, "needs preserved_key_dims"),
    ({"calibration": "nowhere"}, "calibration: has nothing to calibrate"),
    ({"kv_rank": 8, "refit": True, "method": "fisher"}, "refit=True: needs calibration audio"),
    ({"kv_rank": 8, "method": "attention"}, "method='attention' needs calibration audio or a statistics file"),
]


@pytest.mark.parametrize(("row", "case"), enumerate(REFUSED), ids=[message for _, message in REFUSED])
def test_every_row_of_the_table_refuses_before_anything_is_read(row, case):
    arguments, message = case
    assert len(REFUSED) == len(_REFUSALS)
    with pytest.raises(_REFUSALS[row].error, match=message):
        from_whisper("no-such-owner/no-such-checkpoint", **arguments)


def test_the_configuration_alone_is_enough_to_refuse(config_alone):
    with pytest.raises(ValueError, match="kv_rank=1000"):
        from_whisper(config_alone, kv_rank=1000)
    with pytest.raises(ConversionError, match="rank_multiple=3 lies between"):
        from_whisper(config_alone, cache_cut=0.9, rank_multiple=3, min_rank=4, max_rank=5)
    with pytest.raises(ConversionError, match="a processor is needed"):
        from_whisper(config_alone, kv_rank=8, calibration=[np.ones(16_000, dtype=np.float32)])


def test_what_a_plan_says(config_alone):
    plan = plan_for(config_alone, options={"dtype": "float32", "preserved_key_dims": 1})
    assert (plan.method, plan.options, plan.loading) == ("joint_svd", {"preserved_key_dims": 1}, {"dtype": "float32"})
    assert not plan.needs_moments and not plan.may_refit and plan.calibration is None
    for options, needed in (
        ({"preserved_key_dims": 1, "preserved_key_selection": "2-norm"}, True),
        ({"preserved_key_dims": 1, "preserved_key_selection": "uniform"}, False),
    ):
        samples = [np.ones(16_000, dtype=np.float32)]
        plan = plan_for(config_alone, method="joint_svd", options=options, calibration=samples, processor="given")
        assert plan.needs_moments == needed and len(plan.calibration) == 1


def test_calibration_of_an_exact_conversion_is_not_read(config_alone):
    width = random_whisper().config.d_model
    plan = plan_for(config_alone, kv_rank=width, calibration="nowhere")
    assert plan.calibration is None and plan.method == "fisher"
