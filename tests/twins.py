"""Small models that together have all that a twin in PyTorch supports."""

from tubevit.models.config import Head

HEADS = {"a video": Head(5, "video", tuple("abcde")), "image": Head(4, "image"), "several": Head(3, multi_label=True)}
VIDEO = {"default": Head(5)}
_PLAIN = "4x4x4/8x16x16_8x2x2/3x16x16+2x4x4_2x6x6/8x16x16+0x8x8_1x8x8/16x8x8"  # overlapping, and offsets
_DENSE = dict(tubes="2x8x8/2x8x8", frames=6, size=24)
_FRAMES = dict(tubes="1x8x8/1x8x8", frames=4, size=24)
_CLASS = dict(class_token=True, pooling="cls")
_ODD = (21, 43, 70)
# Fields, and shapes of clips (T, H, W) and of images (H, W). There is one head unless `heads` is among the fields.
CASES: dict[str, tuple[dict, tuple]] = {
    "joint": (
        dict(heads=HEADS, tubes="small", gate_layer=0, gelu="tanh", layer_scale=0.1, mean=(0.4,) * 3,
             std=(0.2, 0.3, 0.4)),
        (_ODD, (43, 70)),
    ),
    "interpolated": (
        dict(tubes=_PLAIN, padding="same", interpolated=True, gain_norm=True, antialias=True, pooling="query",
             position="fixed_no_stride", add_attention=1, gate_layer=1, gate_per_channel=True),
        (_ODD,),
    ),
    "interpolated, aliased": (dict(tubes=_PLAIN, interpolated=True, tube_width=12, tube_linear=True), ((16, 64, 64),)),
    "narrow": (
        dict(tubes="small", padding="same", tube_width=16, position="fixed_literal", pooling="map", qkv_bias=False,
             norm_epsilon=1e-3, mean=(0.4, 0.5, 0.6)),
        (_ODD,),
    ),
    "wide": (
        dict(tubes="small", tube_width=32, position="learned", class_token=True, pooling="mean"),
        ((16, 64, 64), (64, 64)),
    ),
    "learned_2d": (
        dict(tubes="small", position="learned_2d", pooling="linear", class_token=True),
        ((16, 64, 64), (64, 64)),
    ),
    "budget": (
        dict(tubes="small", padding="same", budget="40%:random", class_token=True),
        ((16, 64, 64), (64, 64)),
    ),
    "rope": (dict(position="rope", pooling="attentive", softcap=3.0, **_DENSE), ((4, 32, 16),)),
    "divided": (
        dict(position="learned_space_time", pattern="divided", layer_scale=0.2, **_FRAMES, **_CLASS),
        ((4, 24, 24), (24, 24)),
    ),
    "factorised_encoder": (
        dict(position="learned_space", pattern="factorised_encoder", temporal_depth=1, **_DENSE, **_CLASS),
        ((6, 24, 24),),
    ),
    "factorised_encoder, mean": (
        dict(position="learned_space", pattern="factorised_encoder", temporal_depth=1, frame_pooling="mean", **_FRAMES),
        ((4, 24, 24), (24, 24)),
    ),
    "factorised_encoder, none": (
        dict(position="none", pattern="factorised_encoder", temporal_depth=2, frame_pooling="none", pooling="mean",
             softcap=5.0, **_DENSE),
        ((6, 32, 24),),
    ),
    "factorised_dot": (
        dict(position="index", pattern="factorised_dot", pooling="mean", final_norm="pooled", pooled_norm_epsilon=1e-2,
             **_DENSE),
        ((4, 40, 16),),
    ),
    "image": (dict(tubes="1x8x8/32x8x8", frames=1, size=24, position="learned", **_CLASS), ((24, 24),)),
}  # fmt: skip
