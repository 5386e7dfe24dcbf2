"""LaurelConfig and SiteSpec: checked on creation, JSON round trips, parameter counts of the paper."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laurel_graph.config import MAX_PREVIOUS, VARIANTS, LaurelConfig, SiteOverride, SiteSpec, canonical_variant
from laurel_graph.errors import ConfigError

TOKENS = {"axis": -1, "ndim": 3, "dtype": "float32"}


@given(
    variant=st.sampled_from(VARIANTS),
    rank=st.none() | st.integers(1, 512),
    weights=st.sampled_from(("softmax", "sigmoid", "free")),
    per_channel=st.booleans(),
    previous=st.integers(1, MAX_PREVIOUS),
    glob=st.text(min_size=1),
    off=st.booleans(),
)
def test_config_is_the_same_when_read_back_from_json(variant, rank, weights, per_channel, previous, glob, off):
    config = LaurelConfig(
        variant=variant,
        rank=rank,
        weights=weights,
        per_channel=per_channel,
        previous=previous,
        overrides={glob: SiteOverride(off=off, rank=rank)},
    )
    assert LaurelConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(("spelling", "name"), [("PA + rw", "rw+pa"), ("LR", "lr"), ("pa+lr+rw", "rw+lr+pa")])
def test_variant_is_canonical_when_spelled_in_another_order(spelling, name):
    assert canonical_variant(spelling) == name


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"variant": "rw+rw"}, ["variant", "rw+rw", "rw+lr+pa"]),
        ({"variant": "xx"}, ["variant", "xx"]),
        ({"variant": ""}, ["variant"]),
        ({"rank": 0}, ["rank", "0", "at least 1"]),
        ({"rank": True}, ["rank"]),
        ({"rank": 4.0}, ["rank", "4.0"]),
        ({"weights": "tanh"}, ["weights", "tanh", "softmax"]),
        ({"init": "zeros"}, ["init", "zeros", "xavier"]),
        ({"previous": 9}, ["previous", "9", "1 to 8"]),
        ({"previous_map": "mlp"}, ["previous_map", "mlp", "low-rank"]),
        ({"include": ("long",)}, ["include", "long", "projection"]),
        ({"sites": ()}, ["sites"]),
        ({"seed": -1}, ["seed", "-1"]),
        ({"overrides": {"a": {"depth": 1}}}, ["depth", "variant, rank, off"]),
        ({"overrides": {"a": {"rank": 0}}}, ["rank", "0"]),
        ({"overrides": ["a"]}, ["overrides"]),
        ({"per_channel": 1}, ["per_channel"]),
    ],
)
def test_config_names_field_value_and_valid_ones_when_a_field_is_wrong(fields, words):
    with pytest.raises(ConfigError) as error:
        LaurelConfig(**fields)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    "text",
    ["", "[]", json.dumps({"format": 99}), json.dumps({"format": 1, "ranks": 3}), json.dumps({"format": "1"})],
)
def test_json_is_refused_when_damaged_or_newer(text):
    with pytest.raises(ConfigError):
        LaurelConfig.from_json(text)


@pytest.mark.parametrize(
    ("variant", "kwargs", "count"),
    [
        ("rw", {}, 2),
        ("rw", {"per_channel": True}, 2 * 768),
        ("lr", {}, 2 * 32 * 768),
        ("pa", {}, 3),
        ("rw+lr", {}, 2 * 32 * 768 + 2),
        ("rw+lr+pa", {}, 2 * 32 * 768 + 2 + 3),
        ("pa", {"previous_map": "low-rank"}, 2 * 32 * 768 * 3 + 3),
        ("rw", {"weights": "free"}, 2),
    ],
)
def test_parameter_count_is_the_papers_when_a_site_is_768_wide(variant, kwargs, count):
    spec = LaurelConfig(variant=variant, **kwargs).spec_for("a", width=768, previous=5, **TOKENS)
    assert spec.parameter_count() == count


def test_rank_is_capped_at_a_quarter_of_the_width_when_not_given():
    ranks = [LaurelConfig(variant="lr").spec_for("a", width=w, previous=0, **TOKENS).rank for w in (2, 24, 128, 4096)]
    assert ranks == [1, 6, 32, 32]


def test_rank_is_refused_when_larger_than_the_width():
    with pytest.raises(ConfigError, match=r"rank = 65.*'a'.*64"):
        LaurelConfig(variant="lr", rank=65).spec_for("a", width=64, previous=0, **TOKENS)


def test_rank_warns_when_above_half_of_the_width():
    with pytest.warns(UserWarning, match="half of its width"):
        LaurelConfig(variant="lr", rank=40).spec_for("a", width=64, previous=0, **TOKENS)


def test_pa_drops_out_when_the_stream_offers_no_earlier_activation():
    assert LaurelConfig(variant="pa").spec_for("a", width=64, previous=0, **TOKENS) is None
    assert LaurelConfig(variant="rw+pa").spec_for("a", width=64, previous=0, **TOKENS).variant == "rw"
    assert LaurelConfig(variant="pa").spec_for("a", width=64, previous=2, **TOKENS).previous == 2


def test_last_matching_override_wins_when_several_match():
    config = LaurelConfig(
        overrides={"block.*": SiteOverride(off=True), "block.1.*": SiteOverride(variant="lr", rank=3)}
    )
    assert config.spec_for("block.0.res1", width=64, previous=0, **TOKENS) is None
    spec = config.spec_for("block.1.res1", width=64, previous=0, **TOKENS)
    assert (spec.variant, spec.rank) == ("lr", 3)


def test_spec_is_the_same_when_read_back_from_a_dict():
    spec = LaurelConfig(variant="rw+lr+pa").spec_for("a", width=64, previous=2, **TOKENS)
    assert SiteSpec.from_dict(spec.to_dict()) == spec
    with pytest.raises(ConfigError, match="width"):
        SiteSpec.from_dict({**spec.to_dict(), "width": 0})
