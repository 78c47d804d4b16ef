"""The scanner's image of a phantom: the signal of every tissue in every modality, healthy mimics of disease,
and the scanner's faults.
"""

import numpy as np
from jaxtyping import Float32, Int16
from numpy.random import Generator
from scipy.ndimage import gaussian_filter

from brats_seg.core.shapes import Mask
from brats_seg.phantoms.brain import Brain, smooth_noise
from brats_seg.phantoms.tumor import Traits, Tumor, lowest
from brats_seg.scans.case import MODALITIES
from brats_seg.scans.labels import TISSUES

INTENSITY = {
    "csf": (0.28, 0.28, 1.90, 0.25),
    "gray": (0.72, 0.75, 1.00, 1.02),
    "white": (1.00, 1.00, 0.72, 0.82),
    "vessel": (0.80, 1.90, 0.70, 0.80),
    "necrotic_core": (0.48, 0.46, 1.55, 1.00),
    "edema": (0.76, 0.78, 1.38, 1.50),
    "non_enhancing_core": (0.60, 0.63, 1.28, 1.28),
    "enhancing_core": (0.74, 1.60, 1.12, 1.26),
    "resection_cavity": (0.30, 0.30, 1.85, 0.35),
}
"""Signal of each tissue in t1n, t1c, t2w, t2f, in units of white matter on T1; mimics of edema have its
signal exactly.
"""


def mimics_of(brain: Brain, rng: Generator, *, traits: Traits) -> tuple[Mask, Mask]:
    """Healthy voxels that look like edema, and healthy voxels that enhance."""
    n_brain = int(brain.inside.sum())
    return _bright(brain, rng, n=round(traits.bright_spots * n_brain)), _vessels(
        brain, rng, n=round(traits.vessels * n_brain)
    )


def paint(
    brain: Brain, tumor: Tumor, rng: Generator, *, mimics: Mask, vessels: Mask, traits: Traits
) -> Float32[np.ndarray, "m z y x"]:
    """The signal of every voxel before the scanner adds its faults."""
    signal = {name: np.array(row) * np.exp(rng.normal(0, 0.025, 4)) for name, row in INTENSITY.items()}
    contrast = traits.contrast * float(np.exp(rng.normal(0, 0.08)))
    texture = 1 + np.float32(0.03) * smooth_noise(rng, brain.white.shape, scale_vox=5 * brain.voxel)
    images = np.empty((len(MODALITIES), *brain.white.shape), np.float32)
    for m in range(len(MODALITIES)):
        fluid, gray, white, vessel = (
            np.float32(signal[name][m]) for name in ("csf", "gray", "white", "vessel")
        )
        lesion = {name: np.float32(white + contrast * (signal[name][m] - white)) for name in TISSUES[1:]}
        image = fluid * brain.csf + gray * brain.gray + white * brain.white
        image[mimics] = lesion["edema"]
        image[vessels] = vessel
        image += tumor.visible * np.where(mimics | vessels, 0, lesion["edema"] - image)
        for index, name in enumerate(TISSUES):
            if name not in ("healthy", "edema"):
                image[tumor.tissue == index] = lesion[name]
        images[m] = image * texture
    return images


def scan(
    clean: Float32[np.ndarray, "m z y x"], inside: Mask, rng: Generator, *, traits: Traits
) -> Int16[np.ndarray, "z y x m"]:
    """The scanner's image: partial volume, bias field, noise, its own intensity scale; at least 1 in the
    brain, 0 outside.
    """
    shape = inside.shape
    volume = np.empty((*shape, len(clean)), np.int16)
    for m, signal in enumerate(clean):
        image = gaussian_filter(signal, 0.5)
        image *= np.exp(np.float32(traits.bias) * smooth_noise(rng, shape, scale_vox=0.45 * shape[1]))
        # a blur of 0.4 voxels leaves 0.75 of the noise's standard deviation
        image += np.float32(traits.noise / 0.75) * gaussian_filter(
            rng.standard_normal(shape, dtype=np.float32), 0.4
        )
        gamma, gain = np.exp(rng.normal(0, 0.04)), np.exp(rng.normal(np.log(400), 0.5))
        volume[..., m] = np.clip(np.rint(gain * np.maximum(image, 0) ** gamma), 1, 30_000)
    volume[~inside] = 0
    return volume


def _bright(brain: Brain, rng: Generator, *, n: int) -> Mask:
    """White-matter spots (the peaks of a noise) and caps of the ventricles."""
    shape, voxel = brain.white.shape, brain.voxel
    spots = -smooth_noise(rng, shape, scale_vox=2.2 * voxel) - 0.6 * smooth_noise(
        rng, shape, scale_vox=14 * voxel
    )
    spots[(brain.white < 0.8) | (brain.depth_vox < 4 * voxel)] = np.inf
    caps = brain.ventricle_vox / voxel + smooth_noise(rng, shape, scale_vox=6 * voxel)
    caps[(brain.white < 0.5) | (brain.ventricle_vox < 0)] = np.inf
    return lowest(spots, round(0.75 * n)) | lowest(caps, round(0.25 * n))


def _vessels(brain: Brain, rng: Generator, *, n: int) -> Mask:
    """Tubes (where two noises are both near 0), venous sinuses along the fissures, and choroid plexus in the
    ventricles.
    """
    shape, voxel = brain.white.shape, brain.voxel
    tubes = np.hypot(
        smooth_noise(rng, shape, scale_vox=9 * voxel), smooth_noise(rng, shape, scale_vox=9 * voxel)
    )
    tubes[~brain.inside] = np.inf
    sinus = (
        brain.fissure_vox
        + np.maximum(brain.depth_vox - 1.5 * voxel, 0)
        + smooth_noise(rng, shape, scale_vox=8 * voxel)
    )
    sinus[~brain.inside] = np.inf
    plexus = -smooth_noise(rng, shape, scale_vox=2.5 * voxel)
    plexus[(brain.ventricle_vox > -0.5) | ~brain.inside] = np.inf
    return lowest(tubes, round(0.55 * n)) | lowest(sinus, round(0.35 * n)) | lowest(plexus, round(0.1 * n))
