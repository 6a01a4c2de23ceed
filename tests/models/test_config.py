import dataclasses
import sys

import pytest

from tubevit.errors import UserError
from tubevit.models.config import ATTENTION, GELUS, POOLINGS, REMAT, Head, ModelConfig
from tubevit.models.position import POSITIONS
from tubevit.tubes import PRESETS, as_tube_set

SIZES = dict(name="x", width=24, depth=2, num_heads=2, mlp_dim=8)
ONE, SECOND = "4x8x8/4x8x8", dict(pattern="factorised_encoder", temporal_depth=1)


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(width=25), ["width 25", "num_heads 2"]),
        (dict(width=22), ["width 22", "4 sub-windows", "8x2x2/3x16x16"]),
        (dict(depth=0), ["depth", "found 0"]),
        (dict(precision="float16"), ["precision 'float16'", "bfloat16"]),
        (dict(padding="full"), ["padding 'full'", "same"]),
        (dict(tubes="smal"), ["'smal'", "'small'"]),
        (dict(remat="ful"), ["remat 'ful'", "'full'"]),
        (dict(attention="einsun"), ["attention 'einsun'", "'einsum'"]),
        (dict(position="learnt"), ["position 'learnt'", "'learned'"]),
        (dict(pooling="men"), ["pooling 'men'", "'mean'"]),
        (dict(gelu="erf"), ["gelu 'erf'", "exact", "tanh"]),
        (dict(pooling="cls"), ["'cls'", "class_token=True", "linear, query, map, attentive, mean"]),
        (dict(dropout=1.0), ["dropout", "below 1", "1.0"]),
        (dict(stochastic_depth=-0.1), ["stochastic_depth", "-0.1"]),
        (dict(norm_epsilon=0.0), ["norm_epsilon", "above 0", "0.0"]),
        (dict(mean=(0.5, 0.5)), ["mean", "3 numbers", "(0.5, 0.5)"]),
        (dict(mean=0.5), ["mean", "3 numbers", "found 0.5"]),
        (dict(mean=(0.5, 0.5, float("nan"))), ["mean", "nan"]),
        (dict(mean=(127, 127, 127)), ["mean", "at most 1", "127"]),
        (dict(std=(0.5, 0.5, 58)), ["std", "at most 1", "58"]),
        (dict(std="abc"), ["std", "3 numbers", "'abc'"]),
        (dict(std=(0.2, 0.0, 0.2)), ["std", "above 0", "found 0.0"]),
        (dict(add_attention=3), ["add_attention", "0 to 2", "found 3"]),
        (dict(add_attention=-1), ["add_attention", "at least 0", "found -1"]),
        (dict(freeze_below=3), ["freeze_below", "0 to 2", "found 3"]),
        (dict(freeze_below=None), ["freeze_below", "found None"]),
        (dict(gate_layer=2), ["gate_layer", "0 to 1", "found 2"]),
        (dict(gate_layer=-1), ["gate_layer", "at least 0", "found -1"]),
        (dict(gate_layer=0.5), ["gate_layer", "whole number", "found 0.5"]),
        (dict(tube_width=0), ["tube_width", "at least 1", "found 0"]),
        (dict(tube_width=22), ["width 22", "4 sub-windows", "8x2x2/3x16x16"]),
        (dict(pattern="joined"), ["pattern 'joined'", "'joint'"]),
        (dict(pattern="divided"), ["'divided'", "single tube", "8x2x2"]),
        (dict(position="rope"), ["'rope'", "single tube", "8x2x2"]),
        (dict(tubes=ONE, pattern="divided", position="rope"), ["'divided' needs a position other than 'rope'"]),
        (dict(tubes=ONE, pattern="divided", gate_layer=0), ["'divided' needs add_attention=0 and gate_layer=None"]),
        (dict(tubes=ONE, pattern="divided", temporal_depth=2), ["'divided' needs temporal_depth=0 instead of 2"]),
        (dict(tubes=ONE, pattern="factorised_encoder"), ["temporal_depth of at least 1", "class_token=True", "'cls'"]),
        (dict(tubes=ONE, frame_pooling="none", class_token=True, **SECOND), ["class_token=False", "'none'"]),
        (dict(tubes=ONE, pattern="factorised_dot", class_token=True), ["class_token=False", "'factorised_dot'"]),
        (
            dict(tubes=ONE, pattern="factorised_dot", num_heads=3),
            ["'factorised_dot' needs an even num_heads instead of 3"],
        ),
        (dict(tubes=ONE, frame_pooling="max", **SECOND), ["frame_pooling 'max'", "mean"]),
        (dict(final_norm="token"), ["final_norm 'token'", "'tokens'"]),
        (dict(softcap=0.0), ["softcap", "above 0"]),
        (dict(pooled_norm_epsilon=-1.0), ["pooled_norm_epsilon", "above 0"]),
        (dict(interpolated=True), ["interpolated", "no space-to-depth", "4x4x4/8x16x16%2x1x1"]),
    ],
)
def test_errors_of_the_configuration(fields, words):
    with pytest.raises(UserError) as error:
        ModelConfig(**{**SIZES, "tubes": "small", **fields})
    assert not [word for word in words if word not in str(error.value)], str(error.value)
    assert "\n" not in str(error.value)


def test_limits_and_all_names_are_taken():
    for fields in (
        dict(add_attention=2, freeze_below=2, gate_layer=1, norm_epsilon=1e-12, layer_scale=0.0, mean=(0, 0.5, 1)),
        dict(gate_layer=0, tube_width=4, std=[1, 0.5, 0.2]),
        *({"position": name} for name in POSITIONS if name != "rope"),  # that needs a single tube
        *({"remat": name} for name in REMAT),
        *({"attention": name} for name in ATTENTION),
        *({"gelu": name} for name in GELUS),
        *({"pooling": name, "class_token": True} for name in POOLINGS),
    ):
        config = ModelConfig(tubes="small", **SIZES, **fields)
        assert dataclasses.replace(config) == config and hash(config) == hash(dataclasses.replace(config))
    assert ModelConfig(tubes="small", std=[1, 1, 0.5], **SIZES).std == (1.0, 1.0, 0.5)


@pytest.mark.parametrize("values", [dict(classes=0), dict(classes=3, labels="ab"), dict(classes=3, modality="audio")])
def test_errors_of_heads(values):
    with pytest.raises(UserError, match=r"found (0|2)|'audio'.*'?image"):
        Head(**values)


def test_padding_of_a_configuration():
    same = ModelConfig(tubes="small", padding="same", **SIZES)
    assert same.tubes.tubes == PRESETS["small"].tubes and same.tubes.padding == "same"
    assert ModelConfig(tubes=same.tubes, **SIZES).padding == "same"


def test_interpolated_kernels_of_a_configuration():
    assert ModelConfig(tubes="interpolated", **SIZES).interpolated
    assert ModelConfig(tubes="charades", interpolated=True, **SIZES).tubes == as_tube_set("charades", None, True)
    own = ModelConfig(tubes="interpolated", interpolated=False, padding="same", **SIZES)
    assert own.tubes == as_tube_set("paper_no_s2d", "same") and not own.interpolated


def test_channels_of_tubes():
    config = ModelConfig(tubes="small", tube_width=16, **SIZES)
    assert [config.channels(tube) for tube in config.tubes.tubes] == [16, 16, 16, 24]
    assert {ModelConfig(tubes="small", **SIZES).channels(tube) for tube in config.tubes.tubes} == {24}


def test_other_tubes_bring_their_own_padding_and_kernels():
    config = ModelConfig(name="x", width=24, depth=1, num_heads=1, mlp_dim=8, tubes="paper_no_s2d", padding="same")
    assert config.replace(tubes="interpolated").interpolated and config.replace(tubes="core").padding == "valid"
    back = config.replace(tubes="interpolated").replace(tubes="paper")
    assert not back.interpolated and back.tubes == PRESETS["paper"]
    assert config.replace(width=48).padding == "same" and config.replace(tubes="core", padding="same").padding == "same"


def test_int8_without_qwix(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(UserError, match=r"quantize='int8' needs qwix, .*'tubevit\[int8\]'"):
        tiny(quantize="int8")
