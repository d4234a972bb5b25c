from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import random_whisper
from tests.conversion.tiny import random_statistics
from tests.rounding import same_divergence
from whisper_mla.configuration.configuration_whisper_mla import WhisperMLAConfig
from whisper_mla.conversion import ConversionError, from_whisper, save_statistics, to_whisper
from whisper_mla.conversion.calibration.fisher_information import FisherInformation
from whisper_mla.conversion.methods.apply_factors import approximated
from whisper_mla.conversion.methods.factorise import Factorised
from whisper_mla.conversion.methods.factors import value_bias
from whisper_mla.conversion.methods.fisher import fisher, fisher_gram
from whisper_mla.conversion.ranks.quality import HeldOut
from whisper_mla.conversion.refit.joint_refit import _UpProjections, refit_if_better, refit_jointly
from whisper_mla.conversion.source.latent_weights import latent_weights
from whisper_mla.conversion.source.latents import latents_of

pytestmark = pytest.mark.numerics

OPTIONS = {"floor": 0.1}
PLACEMENTS = {
    "self": {"kv_rank": [4, 6]},
    "self and cross": {"kv_rank": 5, "cross_kv_rank": 6},
    "cross per layer": {"cross_kv_rank": [4, 7], "cross_kv_shared": False},
    "everywhere": {"kv_rank": [6, 16], "cross_kv_rank": 6, "audio_kv_rank": 8},
}
WITH_PLACEMENT = pytest.mark.parametrize("ranks", PLACEMENTS.values(), ids=PLACEMENTS.keys())


@pytest.fixture(scope="module")
def small():
    model = random_whisper(vocab_size=24, d_model=16, max_source_positions=12)
    return model, random_statistics(model)


def factorised(model, statistics, ranks) -> list[Factorised]:
    config = WhisperMLAConfig.from_whisper_config(model.config, **ranks)
    latents = [latent for latent in latents_of(config) if latent.rank < config.d_model]
    weights = model.state_dict()
    return [
        Factorised(latent, fisher(latent_weights(latent, weights), statistics.moments(latent), latent.rank, **OPTIONS))
        for latent in latents
    ]


def in_decoder(items):
    return [item for item in items if not item.latent.in_encoder]


def objective(model, statistics, start, items, strength) -> float:
    """What the refit minimises, from its definition: nats of KL to second order, and the distance to the start."""
    information = FisherInformation(model, statistics.examples)
    weights, errors, distance = model.state_dict(), {}, 0.0
    for first, item in zip(in_decoder(start), in_decoder(items), strict=True):
        around = latent_weights(item.latent, weights)
        bias = value_bias(around, item.factors)
        gram, _ = fisher_gram(around, statistics.moments(item.latent), **OPTIONS)
        for i, name in enumerate(item.latent.attentions):
            for kind, stock in (("key", around.key[i]), ("value", around.value[i])):
                up, before = (getattr(part.factors, f"{kind}_up")[i] for part in (item, first))
                errors[f"{name}.{kind[0]}_proj.weight"] = up @ item.factors.down - stock
                moved = torch.linalg.solve(stock, up - before)
                distance += (moved * (gram @ moved)).sum().item()
            errors[f"{name}.v_proj.bias"] = bias[i]
    product = information.times(errors)
    kl = sum((errors[name] * product[name]).sum().item() for name in errors) / 2
    return kl + strength * distance / 2


@WITH_PLACEMENT
def test_no_other_up_projections_are_better(small, ranks):
    """Nor is what it started from, by far."""
    model, statistics = small
    start = factorised(model, statistics, ranks)
    found = refit_jointly(model, start, statistics, OPTIONS, strength=0.3, steps=300)
    best = objective(model, statistics, start, found, 0.3)
    assert best < 0.9 * objective(model, statistics, start, start, 0.3)
    generator = torch.Generator().manual_seed(0)
    for trial in range(25):
        other = []
        for item in found:
            factors = item.factors
            moved = {}
            for name in ("key_up", "value_up"):
                up = getattr(factors, name)
                noise = torch.randn(up.shape, generator=generator, dtype=up.dtype)
                moved[name] = up + 10.0 ** -(trial % 4) * noise * up.norm() / noise.norm()
            other.append(replace(item, factors=replace(factors, **moved)) if not item.latent.in_encoder else item)
        assert objective(model, statistics, start, other, 0.3) > best


@WITH_PLACEMENT
def test_only_up_projections_of_the_decoder_change(small, ranks):
    model, statistics = small
    start = factorised(model, statistics, ranks)
    found = refit_jointly(model, start, statistics, OPTIONS, steps=2)
    assert [item.latent for item in found] == [item.latent for item in start]
    for before, after in zip(start, found, strict=True):
        for name in ("down", "mean", "singular_values"):
            assert torch.equal(getattr(before.factors, name), getattr(after.factors, name))
        for name in ("key_up", "value_up"):
            same = torch.equal(getattr(before.factors, name), getattr(after.factors, name))
            assert same == before.latent.in_encoder


@WITH_PLACEMENT
def test_the_gradient_is_the_adjoint_of_the_change(small, ranks):
    model, statistics = small
    torch.manual_seed(0)
    for item in factorised(model, statistics, ranks):
        part = _UpProjections(item, model.state_dict(), statistics, OPTIONS)
        unknown = torch.randn(part.shape, dtype=torch.float64)
        change = part.change(unknown)
        outer = {name: torch.randn_like(tensor) for name, tensor in change.items()}
        forward = sum((change[name] * outer[name]).sum().item() for name in change)
        assert (unknown * part.gradient(outer)).sum().item() == pytest.approx(forward, rel=1e-9)
        torch.testing.assert_close(part.precondition(part.metric(unknown)), unknown)


@pytest.mark.parametrize("how", [{"strength": 1e9}, {"steps": 0}], ids=str)
def test_without_trust_in_the_audio_nothing_moves(small, how):
    model, statistics = small
    start = factorised(model, statistics, {"kv_rank": 6})
    for before, after in zip(start, refit_jointly(model, start, statistics, OPTIONS, **how), strict=True):
        torch.testing.assert_close(after.factors.key_up, before.factors.key_up, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(after.factors.value_up, before.factors.value_up, rtol=1e-6, atol=1e-7)


def test_predictions_come_closer_to_stock(digits, digits_statistics):
    """Not only to second order: the KL divergence on the audio of the calibration, measured."""
    config = WhisperMLAConfig.from_whisper_config(digits.config, kv_rank=48)
    latents = [latent for latent in latents_of(config) if latent.rank == 48]
    weights = digits.state_dict()
    start = [
        Factorised(item, fisher(latent_weights(item, weights), digits_statistics.moments(item), 48)) for item in latents
    ]
    measured = HeldOut(digits, digits_statistics.examples)

    def divergence(items):
        with approximated(digits, {item.latent: item.factors for item in items}):
            return measured.measure(digits, same_encoder=True).kl

    before = divergence(start)
    after = divergence(refit_jointly(digits, start, digits_statistics, {}, steps=8))
    assert 0 < after < before / 2


@pytest.mark.parametrize(
    ("measured", "always", "kept"),
    [((0.2, 0.1), False, True), ((0.1, 0.2), False, False), ((0.1, 0.1), False, False), ((0.1, 0.2), True, True)],
)
def test_it_is_kept_where_held_out_audio_agrees(small, measured, always, kept):
    model, statistics = small
    start = factorised(model, statistics, {"kv_rank": 6})
    values = iter(measured)
    held_out = SimpleNamespace(measure=lambda *_: SimpleNamespace(kl=next(values)))
    found, facts = refit_if_better(model, start, statistics, OPTIONS, held_out, always=always)
    assert facts == {"kept": kept, "kl_before": measured[0], "kl_after": measured[1]}
    assert kept != torch.equal(found[0].factors.key_up, start[0].factors.key_up)


@pytest.mark.parametrize(("placement", "same"), [("everywhere", False), ("self and cross", True)])
def test_a_converted_encoder_is_measured_too(small, placement, same):
    model, statistics = small
    start, asked = factorised(model, statistics, PLACEMENTS[placement]), []

    def measure(_, same_encoder):
        asked.append(same_encoder)
        return SimpleNamespace(kl=0.1)

    refit_if_better(model, start, statistics, OPTIONS, SimpleNamespace(measure=measure))
    assert asked == [same, same]


def test_without_held_out_audio_only_on_request(small):
    model, statistics = small
    start = factorised(model, statistics, {"kv_rank": 6})
    assert refit_if_better(model, start, statistics, OPTIONS, None) == (start, None)
    found, facts = refit_if_better(model, start, statistics, OPTIONS, None, always=True)
    assert facts == {"kept": True, "kl_before": None, "kl_after": None}
    assert not torch.equal(found[0].factors.key_up, start[0].factors.key_up)


def test_conversion_with_it(small):
    stock, statistics = small
    ranks = {"kv_rank": 8, "cross_kv_rank": 10, "floor": 0.1}
    plain, model = (
        from_whisper(stock, calibration=statistics, force=True, refit=refit, **ranks) for refit in (False, True)
    )
    assert plain.conversion_report["refit"] is None
    facts = model.conversion_report["refit"]
    assert facts == model.conversion_record["refit"] and facts["kept"]
    assert same_divergence(facts["kl_before"], plain.conversion_report["quality"]["kl_per_token"])
    assert same_divergence(facts["kl_after"], model.conversion_report["quality"]["kl_per_token"])
    assert not same_divergence(facts["kl_before"], facts["kl_after"])
    weights = plain.state_dict()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, weights[name])}
    assert changed and all("decoder.layers" in name and ("k_proj" in name or "v_proj" in name) for name in changed)
    tokens = torch.tensor([[3, 9, 17, 4]])
    features = statistics.examples[0].input_features[None]
    with torch.no_grad():
        ours, exported = (m(features, decoder_input_ids=tokens).logits for m in (model, to_whisper(model)))
    torch.testing.assert_close(ours, exported, rtol=1e-4, atol=2e-4)
    # By itself it is tried where there is audio, and taken if the clips held out agree.
    tried = from_whisper(stock, calibration=statistics, force=True, **ranks).conversion_report
    assert tried["refit"]["kept"] == (facts["kl_after"] < facts["kl_before"])
    assert same_divergence(tried["quality"]["kl_per_token"], min(facts["kl_before"], facts["kl_after"]))


@pytest.mark.parametrize(
    "arguments",
    [
        {"kv_rank": 32},
        {"audio_kv_rank": 16},
        {"kv_rank": 16, "method": "covariance"},
        {"kv_rank": 16, "sequential": True},
    ],
)
def test_where_there_is_nothing_to_refit(tiny, tiny_statistics, arguments):
    model = from_whisper(tiny, calibration=tiny_statistics, force=True, **arguments)
    assert model.conversion_report["refit"] is None


def test_refusals(tiny, tiny_statistics, tmp_path):
    save_statistics(tiny_statistics, tmp_path / "tiny.safetensors")
    arguments = {"kv_rank": 8, "calibration": tmp_path / "tiny.safetensors", "force": True}
    with pytest.raises(ConversionError, match=r"refit=True: needs calibration audio .*, not a statistics file"):
        from_whisper(tiny, **arguments, refit=True)
    with pytest.raises(ValueError, match="refit=True: needs method='fisher', with calibration audio, not method='cov"):
        from_whisper(tiny, **arguments, refit=True, method="covariance")
    with pytest.raises(ValueError, match="refit=True: needs method='fisher', with calibration audio, not sequential"):
        from_whisper(tiny, **arguments, refit=True, sequential=True)
    with pytest.raises(ValueError, match="with calibration audio, not method='joint_svd'"):
        from_whisper(tiny, kv_rank=8, refit=True, method="joint_svd")
    with pytest.raises(ValueError, match="refit=True: needs calibration audio"):
        from_whisper(tiny, kv_rank=8, refit=True, method="fisher")
    with pytest.raises(ValueError, match="refit=True: could break max_kl"):
        from_whisper(tiny, max_kl=0.1, calibration=tiny_statistics, refit=True)
    for nothing in ({"audio_kv_rank": 8}, {"kv_rank": 32}):
        with pytest.raises(ValueError, match="refit=True: nothing in the decoder to refit"):
            from_whisper(tiny, calibration=tiny_statistics, force=True, refit=True, **nothing)
    assert from_whisper(tiny, **arguments).conversion_report["refit"] is None
