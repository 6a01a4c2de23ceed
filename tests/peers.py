"""Random models of torch peers, and the comparison with ours."""

import numpy as np
import torch


def randomised(peer, seed=0):
    """Every parameter random, none 0 or 1: each must reach its place. Logits come out at about 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, leaf in peer.named_parameters():
            noise = torch.randn(leaf.shape, generator=generator)
            if leaf.ndim == 1 and ("norm" in name or "lambda" in name or "gamma" in name) and not name.endswith("bias"):
                leaf.copy_(1 + 0.2 * noise)
            elif leaf.ndim == 2 and "embed" not in name and "probe" not in name:
                leaf.copy_(noise * (0.7 / leaf.shape[1] ** 0.5))
            else:
                leaf.copy_(0.1 * noise)
    return peer.eval()


def assert_same(found, expected, tolerance):
    found, expected = np.asarray(found), expected.detach().numpy()
    assert found.shape == expected.shape
    assert 0.1 < np.abs(expected).mean() < 10  # at which the tolerance says something
    assert expected.std(axis=0).min() > 0  # and the images matter
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
