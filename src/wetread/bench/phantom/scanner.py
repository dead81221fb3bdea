"""What a scanner does to the chest: sharpness, slice thickness, noise, streaks, breathing, calibration."""

from __future__ import annotations

import numpy as np

from .fields import Array, Frame, blur, smoothstep, white_noise


def _breathe(rng: np.random.Generator, hu: Array, low_z: float, frame: Frame) -> Array:
    """Mixes the slices near the diaphragm with their neighbours a few millimetres up, as motion does."""
    xp = frame.xp
    step = max(1, round(rng.uniform(1.5, 5) / frame.spacing_mm[0]))
    z = frame.axes()[0]
    strength = (1 - smoothstep(low_z, low_z + rng.uniform(15, 50), z, xp)) * np.float32(
        rng.uniform(0.15, 0.5)
    )
    moved = xp.concatenate([hu[step:], xp.repeat(hu[-1:], step, axis=0)])
    return hu + (moved - hu) * strength


def _noise(rng: np.random.Generator, frame: Frame, sharp: float, level: float, thick_vox: float) -> Array:
    """Correlated noise of standard deviation ``level`` HU: blurred for a soft kernel, high-passed for a sharp one."""
    xp = frame.xp
    noise = white_noise(frame, int(rng.integers(2**31)))
    if sharp < 0.5:
        plane = 1.15 - 1.3 * sharp
        noise = blur(noise, (thick_vox, plane, plane), xp)
    else:
        noise = blur(noise, (thick_vox, 0.45, 0.45), xp)
        noise = noise - blur(noise, (0, 1.2, 1.2), xp) * np.float32(2 * sharp - 1)
    middle = noise[:: max(1, frame.shape[0] // 16)]
    return noise * (np.float32(level) / middle.std())


def scan(rng: np.random.Generator, hu: Array, low_z: float, frame: Frame) -> Array:
    """The chest as one of many scanners would give it; HU float32. ``low_z`` (mm): below it breathing smears."""
    xp, f32 = frame.xp, np.float32
    if rng.random() < 0.35:
        hu = _breathe(rng, hu, low_z, frame)
    thick = float(rng.choice([0.35, 0.5, 0.8, 1.2])) * rng.uniform(0.8, 1.2)
    wide = rng.uniform(0.35, 0.85)
    sz, sy, sx = frame.spacing_mm
    hu = blur(hu, (thick / sz, wide / sy, wide / sx), xp)
    sharp = float(rng.random())
    if sharp > 0.45:
        hu = hu + (hu - blur(hu, (0, 1.1 / sy, 1.1 / sx), xp)) * f32(
            1.3 * (sharp - 0.45) * rng.uniform(0.3, 1.2)
        )
    level = float(np.exp(rng.uniform(np.log(6), np.log(28 + 45 * sharp))))
    noise = _noise(rng, frame, sharp, level, 0.55 * thick / sz)
    if rng.random() < 0.4:
        z = frame.axes()[0]
        height = frame.extent_mm[0]
        shoulder = smoothstep(0.72 * height, 0.95 * height, z, xp) * f32(rng.uniform(0.3, 1.5))
        noise = noise + blur(noise, (0, 0.3, 6.0 / sx), xp) * shoulder * f32(3)
        noise *= 1 + shoulder * f32(0.4)
    shade = hu + noise
    shade = (shade + f32(1000)) * f32(rng.uniform(0.975, 1.025)) - f32(1000) + f32(rng.normal(0, 6))
    return xp.clip(shade, -1024, 3071)
