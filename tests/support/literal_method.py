"""The method's formulas read literally, at full resolution: what the package's cheap forms are held against."""

from __future__ import annotations

import torch
from torch.nn.functional import cosine_similarity, cross_entropy, interpolate

SHAPES = {"2d": ((3, 4, 16, 12), (3, 6, 4, 3)), "3d": ((2, 3, 8, 12, 10), (2, 5, 2, 3, 4))}


def draw(kind: str = "2d", seed: int = 0, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """z_a1, z_a2, F_a1, F_a2, z_b1, z_b2, F_b1, F_b2."""
    generator = torch.Generator().manual_seed(seed)
    logits, features = SHAPES[kind]
    shapes = [logits, logits, features, features] * 2
    scales = [3, 3, 1, 1] * 2
    return [
        (scale * torch.randn(shape, generator=generator, dtype=dtype)).requires_grad_()
        for shape, scale in zip(shapes, scales, strict=True)
    ]


def literal_terms(inputs, beta=0.8, temperature=0.1) -> dict[str, torch.Tensor]:
    """The formulas as the paper writes them: full-resolution features, a sort, explicit masks."""
    z_a1, z_a2, f_a1, f_a2, z_b1, z_b2, f_b1, f_b2 = inputs
    shape = z_a1.shape[2:]
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    up = {k: interpolate(v, shape, mode=mode) for k, v in {"a1": f_a1, "a2": f_a2, "b1": f_b1, "b2": f_b2}.items()}
    p = {k: v.softmax(1) for k, v in {"a1": z_a1, "a2": z_a2, "b1": z_b1, "b2": z_b2}.items()}
    con = {n: p[f"{n}2"].max(1).values for n in "ab"}
    values = ((con["a"] + con["b"]) / 2).flatten().sort().values
    gamma = values[: int(beta * len(values))].mean()
    omega2 = {"a": (con["a"] <= gamma) & (con["b"] > gamma), "b": (con["b"] <= gamma) & (con["a"] > gamma)}
    omega3 = (con["a"] < gamma) & (con["b"] < gamma)

    a_wins = (p["a1"].max(1).values > p["b1"].max(1).values).unsqueeze(1)
    t = torch.where(a_wins, p["a1"], p["b1"])
    s = t ** (1 / temperature) / (t ** (1 / temperature) + (1 - t) ** (1 / temperature))
    result = {"gamma": gamma, "omega2a": omega2["a"], "omega2b": omega2["b"], "omega3": omega3}
    for n, other in (("a", "b"), ("b", "a")):
        mse = ((p[f"{n}2"] - s) ** 2).sum(1)[omega3].sum() / omega3.sum()
        entropies = [-(q * (q + 1e-6).log()).sum(1) * omega3 for q in (p[f"{n}1"], p[f"{n}2"])]
        result[f"dtct_{n}"] = mse + entropies[0].mean() + entropies[1].mean()

        y = {"a": z_a1.argmax(1), "b": z_b1.argmax(1)}[other]
        prototypes = []
        for c in range(z_a1.shape[1]):
            members = (y == c).double()
            sums = [(u * m).flatten(1).sum(1) / (m.sum() + 1e-5) for u, m in zip(up[f"{other}1"], members, strict=True)]
            prototypes.append(torch.stack(sums).mean(0))
        d = torch.stack(
            [cosine_similarity(up[f"{n}2"], q.view(1, -1, *[1] * len(shape)), dim=1) for q in prototypes], dim=1
        )
        mask = omega2[n]
        result[f"ce_{n}"] = (cross_entropy(d, y, reduction="none") * mask).sum() / (mask.sum() + 1e-16)
        result[f"cos_{n}"] = ((1 - d) * mask.unsqueeze(1)).mean()
    return result


TERMS = ("dtct_a", "dtct_b", "ce_a", "ce_b", "cos_a", "cos_b")
