"""Values and gradients of every loss against TRL's, and against numbers worked out by hand."""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tunix.sft.dpo import aot, kto_loss, preference_losses

FIXTURE = json.loads((pathlib.Path(__file__).parent / "preference_losses.json").read_text())
SETTINGS = FIXTURE["settings"]
LENGTHS = {f"{k}_length": jnp.array(v, jnp.float32) for k, v in FIXTURE["lengths"].items()}
LOGPS = {k: jnp.array(v, jnp.float32) for k, v in FIXTURE["logps"].items()}
ALL = jnp.ones(5, bool)


def pairs_of(chosen, rejected):
    return preference_losses.Pairs(**{**LOGPS, "chosen": chosen, "rejected": rejected}, **LENGTHS)


def options_of(loss, name):
    smoothing = SETTINGS["label_smoothing"] if name in FIXTURE["smoothed"] else 0.0
    return {k: {**SETTINGS, "label_smoothing": smoothing}[k] for k in loss.options}


def mean_loss(name, chosen, rejected):
    pairs = pairs_of(chosen, rejected)
    if name in aot.AOT_LOSSES:
        loss = aot.AOT_LOSSES[name]
        (partners,) = aot.couple([(pairs, ALL)])
        return loss.fn(pairs, partners, **options_of(loss, name)).mean()
    loss = preference_losses.PAIR_LOSSES[name]
    return loss.fn(pairs, **options_of(loss, name)).mean()


def assert_matches(found, want, names):
    value, grads = found
    np.testing.assert_allclose(value, want["loss"], rtol=1e-5)
    for name, grad in zip(names, grads, strict=True):
        np.testing.assert_allclose(grad, want["gradients"][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in FIXTURE["pairs"] if name != "mix"])
def test_value_and_gradient_are_those_of_trl(name):
    found = jax.value_and_grad(lambda *x: mean_loss(name, *x), (0, 1))(
        LOGPS["chosen"], LOGPS["rejected"]
    )
    assert_matches(found, FIXTURE["pairs"][name], ("chosen", "rejected"))


def test_every_loss_is_compared_with_trl():
    known = {*preference_losses.PAIR_LOSSES, *aot.AOT_LOSSES}
    # sft is worked out by hand below; aot_pair is another name of aot.
    assert known - set(FIXTURE["pairs"]) == {"sft", "aot_pair"}


def test_kto_is_that_of_trl():
    kto = FIXTURE["kto"]
    labels = jnp.array(kto["labels"])
    differences = jnp.array(kto["kl"]["logps"]) - jnp.array(kto["kl"]["ref_logps"])
    kl = kto_loss.reference_point(differences.sum(), jnp.float32(len(labels)))
    good, bad = kto["weights"]

    def loss(logps):
        return kto_loss.kto(
            logps - LOGPS["ref_chosen"],
            labels,
            kl,
            beta=SETTINGS["beta"],
            desirable_weight=good,
            undesirable_weight=bad,
        ).mean()

    value, grad = jax.value_and_grad(loss)(LOGPS["chosen"])
    assert_matches((value, [grad]), kto, ("logps",))


def test_the_reference_point_is_a_mean_that_is_never_negative():
    assert kto_loss.reference_point(jnp.float32(1.2), jnp.float32(3.0)) == pytest.approx(0.4)
    assert kto_loss.reference_point(jnp.float32(-1.2), jnp.float32(3.0)) == 0.0
    assert kto_loss.reference_point(jnp.float32(0.0), jnp.float32(0.0)) == 0.0


def test_the_reward_loss_is_that_of_trl():
    want = FIXTURE["reward"]
    chosen, rejected, margin = (jnp.array(want[k]) for k in ("chosen", "rejected", "margin"))
    found = jax.value_and_grad(
        lambda c, r: preference_losses.bradley_terry(c, r, margin).mean(), (0, 1)
    )(chosen, rejected)
    assert_matches(found, want, ("chosen", "rejected"))


def one_pair(chosen, rejected, ref_chosen=0.0, ref_rejected=0.0, lengths=(1, 1)):
    values = [chosen, rejected, ref_chosen, ref_rejected, *lengths]
    return preference_losses.Pairs(*[jnp.array([x], jnp.float32) for x in values])


def test_conservative_dpo_by_hand():
    # r_w = 1, r_l = -1, beta d = 0.5 * 2 = 1.
    pairs = one_pair(-1.0, -4.0, -2.0, -3.0)
    right, wrong = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    found = preference_losses.sigmoid(pairs, beta=0.5, label_smoothing=0.2)
    assert found[0] == pytest.approx(0.8 * right + 0.2 * wrong, rel=1e-6)


def test_the_negative_log_likelihood_is_per_token():
    assert preference_losses.sft(one_pair(-6.0, -1.0, lengths=(4, 1)))[0] == pytest.approx(1.5)


def test_odds_of_likely_and_unlikely_answers_by_hand():
    # p = 0.75 and 0.2: odds 3 and 0.25, ratio 12, -log(12 / 13).
    pairs = one_pair(2 * math.log(0.75), 3 * math.log(0.2), lengths=(2, 3))
    assert preference_losses.orpo(pairs)[0] == pytest.approx(math.log(13 / 12), rel=1e-5)


def test_odds_of_almost_certain_and_almost_impossible_answers_have_finite_gradients():
    def loss(chosen, rejected):
        return preference_losses.orpo(one_pair(chosen, rejected))[0]

    value, grads = jax.value_and_grad(loss, (0, 1))(-60.0, -1e-6)
    # log odds: -60 and -log(1e-6) = 13.8.
    assert value == pytest.approx(73.8155, rel=1e-5)
    assert np.isfinite(grads).all()


def test_an_aot_loss_does_not_depend_on_how_the_step_is_split():
    cut = (slice(0, 2), slice(2, 5))

    def split_mean(name, chosen, rejected):
        pairs = pairs_of(chosen, rejected)
        parts = [jax.tree.map(lambda x, c=c: x[c], pairs) for c in cut]
        partners = aot.couple([(p, jnp.ones(p.chosen.shape, bool)) for p in parts])
        loss = aot.AOT_LOSSES[name]
        found = [
            loss.fn(p, q, **options_of(loss, name)).sum()
            for p, q in zip(parts, partners, strict=True)
        ]
        return sum(found) / 5

    for name in ("aot", "aot_unpaired"):
        found = jax.value_and_grad(lambda *x, name=name: split_mean(name, *x), (0, 1))(
            LOGPS["chosen"], LOGPS["rejected"]
        )
        assert_matches(found, FIXTURE["pairs"][name], ("chosen", "rejected"))


def test_what_is_no_pair_takes_part_in_no_ranking():
    own = jnp.array([3.0, -100.0, 1.0, 2.0])
    other = jnp.array([10.0, 0.0, 30.0, 20.0])
    valid = jnp.array([True, False, True, True])
    np.testing.assert_array_equal(aot.of_same_rank(own, other, valid), [30.0, 0.0, 10.0, 20.0])
