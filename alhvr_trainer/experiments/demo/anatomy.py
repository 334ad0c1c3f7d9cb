"""Anatomy of the cardiac phantoms: what is where, and how bright. Lengths: a slice's shorter side is 2."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LABELS = {"background": 0, "RV": 1, "MYO": 2, "LV": 3}
EDGE = 0.02  # softness of outlines


@dataclass(frozen=True)
class Heart:
    """Anatomy and pose."""

    center: np.ndarray
    drift: np.ndarray
    """Movement of the center from base to apex."""
    rotation: float
    """Direction from the left to the right ventricle, radians."""
    cavity: float
    wall: float
    septum: float
    """Wall thickness next to the right ventricle, relative to the free wall."""
    roundness: float
    taper: float
    """Share of its width that the left ventricle loses towards the apex."""
    rv_length: float
    rv_width: float
    rv_shift: float
    papillary: np.ndarray
    """Angles of the papillary muscles, which count as cavity."""
    wobble: np.ndarray
    """Amplitudes and phases of the outline's irregularity."""


def draw_heart(rng: np.random.Generator) -> Heart:
    return Heart(
        center=rng.uniform(-0.22, 0.22, 2),
        drift=rng.normal(0.0, 0.05, 2),
        rotation=np.pi + rng.normal(0.0, 0.45),
        cavity=rng.uniform(0.17, 0.3),
        wall=rng.uniform(0.08, 0.16),
        septum=rng.uniform(0.75, 1.25),
        roundness=rng.uniform(0.84, 1.0),
        taper=rng.uniform(0.25, 0.55),
        rv_length=rng.uniform(1.0, 1.45),
        rv_width=rng.uniform(0.75, 1.15),
        rv_shift=rng.uniform(0.5, 0.85),
        papillary=rng.uniform(0.6, 1.2, 2) * np.array([1.0, -1.0]),
        wobble=np.stack([rng.normal(0.0, 0.03, 3), rng.uniform(0.0, 2 * np.pi, 3)]),
    )


def draw_tones(rng: np.random.Generator) -> dict[str, float]:
    """Brightness of the tissues: blood is brighter than muscle, by an amount that differs between scans."""
    muscle = rng.uniform(0.25, 0.4)
    blood = muscle + rng.uniform(0.3, 0.55)
    right = max(muscle + 0.15, blood * rng.uniform(0.8, 1.05))
    body = muscle + rng.choice([-1, 1]) * rng.uniform(0.08, 0.22)
    return {"muscle": muscle, "left": blood, "right": right, "body": body}


@dataclass(frozen=True)
class Organ:
    """An ellipse outside the heart; with a ``rim`` it looks like a ventricle."""

    center: np.ndarray
    radii: np.ndarray
    angle: float
    tone: float
    rim: float
    rim_tone: float


def draw_organs(rng: np.random.Generator, heart: Heart) -> list[Organ]:
    """Lungs, liver, vessels, stomach: as bright as blood or muscle, some of them ring-shaped."""
    organs = []
    for _ in range(rng.integers(4, 8)):
        angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.1)
        organ = Organ(
            center=heart.center + distance * np.array([np.sin(angle), np.cos(angle)]),
            radii=rng.uniform(0.08, 0.4, 2),
            angle=rng.uniform(0, np.pi),
            tone=rng.uniform(0.1, 0.9),
            rim=rng.uniform(0.05, 0.12) if rng.random() < 0.4 else 0.0,
            rim_tone=rng.uniform(0.15, 0.5),
        )
        organs.append(organ)
    return organs


def _polar(grid: np.ndarray, center: np.ndarray, angle: float, roundness: float = 1.0) -> tuple:
    """Radius and angle around ``center``: angle 0 points along ``angle``; the radius is stretched across it."""
    y, x = grid - center[:, None, None]
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    return np.hypot(along, across / roundness), np.arctan2(across, along)


def _ellipse(theta: np.ndarray, along: float, across: float) -> np.ndarray:
    """Radius of an ellipse in direction ``theta``."""
    return 1.0 / np.hypot(np.cos(theta) / along, np.sin(theta) / across)


def _lay(scan: np.ndarray, tone: float, inside: np.ndarray) -> np.ndarray:
    """Lay tissue of brightness ``tone`` over the scan; ``inside``: signed distance to its outline."""
    share = 0.5 * (1.0 + np.tanh(inside / EDGE))
    return scan + (tone - scan) * share


def _paint_organs(scan: np.ndarray, organs: list[Organ], grid: np.ndarray, height: float) -> np.ndarray:
    for organ in organs:
        radius, theta = _polar(grid, organ.center, organ.angle)
        size = 1.0 - 0.3 * abs(height - 0.5)  # every slice cuts it at another width
        inside = size * _ellipse(theta, *organ.radii) - radius
        if organ.rim:
            scan = _lay(scan, organ.rim_tone, inside + organ.rim)
        scan = _lay(scan, organ.tone, inside)
    return scan


def paint_slice(
    heart: Heart, tones: dict[str, float], organs: list[Organ], grid: np.ndarray, height: float
) -> tuple[np.ndarray, np.ndarray]:
    """Scan and labels of the slice at ``height``, 0 base to 1 apex."""
    center = heart.center + (height - 0.5) * heart.drift
    scale = 1.0 - heart.taper * height**1.5
    pixel = max(np.diff(grid[0], axis=0).max(), np.diff(grid[1], axis=1).max())

    # left ventricle: cavity and wall; signed distances, positive inside
    radius, theta = _polar(grid, center, heart.rotation, heart.roundness)
    amplitudes, phases = heart.wobble
    waves = np.cos(np.arange(2, 5)[:, None, None] * theta + phases[:, None, None])
    irregular = 1.0 + np.tensordot(amplitudes, waves, axes=1)
    septal = 0.5 * (1.0 + np.cos(theta))
    wall = heart.wall * (1.0 + (heart.septum - 1.0) * septal) * (0.8 + 0.2 * scale)
    cavity = heart.cavity * scale * irregular - radius
    muscle = cavity + np.maximum(wall, 1.25 * pixel)  # coarse pixels must not open the ring

    # right ventricle: an ellipse, partly covered by the left ventricle; it ends before the apex
    size = heart.cavity + heart.wall
    toward_right = np.array([np.sin(heart.rotation), np.cos(heart.rotation)])
    rv_radius, rv_theta = _polar(grid, center + heart.rv_shift * size * scale * toward_right, heart.rotation)
    rv_size = size * max(0.0, 1.0 - 0.75 * height**1.5) * (0.5 + 0.5 * irregular)
    right = rv_size * _ellipse(rv_theta, heart.rv_width, heart.rv_length) - rv_radius

    scan = _paint_organs(np.full(radius.shape, tones["body"]), organs, grid, height)
    scan = _lay(scan, tones["muscle"], right + 0.035)
    scan = _lay(scan, tones["right"], right)
    scan = _lay(scan, tones["muscle"], muscle)
    scan = _lay(scan, tones["left"], cavity)
    for angle in heart.papillary:
        spot = 0.68 * heart.cavity * scale * np.array([np.sin(angle), np.cos(angle)])
        bump = 0.2 * heart.cavity * scale - _polar(grid, center - spot, 0.0)[0]
        scan = _lay(scan, tones["muscle"], np.minimum(bump, cavity))

    label = np.zeros(scan.shape, np.uint8)
    for name, inside in (("RV", right), ("MYO", muscle), ("LV", cavity)):
        label[inside > 0] = LABELS[name]
    return scan, label
