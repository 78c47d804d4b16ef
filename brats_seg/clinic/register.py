"""Two scans of one head -> the rigid transform between them."""

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk  # noqa: N813

from brats_seg.clinic.itk_images import isotropic, resampled
from brats_seg.scans.geometry import Affine

WORST_METRIC = 0.1
"""Mutual information below which a registration has failed; see docs/howto/hospital-scans.md."""

_WORKING_MM = 2.0  # both scans are resampled to this spacing; 1 mm would take eight times as long
_COARSE, _FINE = (4, 2), (2, 1)  # of it, as factors
_N_BINS = 32
_SHARES = {4: 0.3, 2: 0.1, 1: 0.03}  # of the voxels, drawn by a fixed seed; 30,000 at the end


@dataclass(frozen=True)
class Movement:
    """A rigid registration.

    Attributes:
        matrix: a point of the fixed scan, (L, P, S, 1) in mm -> the same point in the moving scan.
        metric: final mutual information; larger is better.
    """

    matrix: Affine
    metric: float

    @property
    def converged(self) -> bool:
        """Whether the two scans agree well enough."""
        return self.metric >= WORST_METRIC


def register(moving: sitk.Image, fixed: sitk.Image) -> Movement:
    """Find the rigid transform by mutual information (Mattes et al. 2003), coarse to fine.

    It starts from two positions: as stored in the headers, and with equal centers of mass. It continues from
    the better one.

    Args:
        moving, fixed: scans of one head with any contrast; background near 0.
    """
    fixed, moving = (_working(image) for image in (fixed, moving))
    in_place = sitk.Euler3DTransform()
    in_place.SetCenter(fixed.TransformContinuousIndexToPhysicalPoint([n / 2 for n in fixed.GetSize()]))
    starts = [
        sitk.CenteredTransformInitializer(
            fixed, moving, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.MOMENTS
        ),
        in_place,
    ]
    coarse = [_optimized(fixed, moving, start, shrink=_COARSE) for start in starts]
    best, _ = max(coarse, key=lambda found: found[1])
    transform, metric = _optimized(fixed, moving, best, shrink=_FINE)
    return Movement(_matrix(transform), metric)


def _working(image: sitk.Image) -> sitk.Image:
    """Voxels finer than the working grid are averaged first."""
    factors = [max(1, int(_WORKING_MM / mm + 0.01)) for mm in image.GetSpacing()]
    averaged = sitk.BinShrink(sitk.Cast(image, sitk.sitkFloat32), factors)
    return resampled(averaged, isotropic(averaged, spacing_mm=_WORKING_MM), matrix=np.eye(4))


def _optimized(
    fixed: sitk.Image, moving: sitk.Image, start: sitk.Transform, *, shrink: tuple[int, ...]
) -> tuple[sitk.Euler3DTransform, float]:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(_N_BINS)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentagePerLevel([_SHARES[factor] for factor in shrink], 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=0.005, numberOfIterations=60, relaxationFactor=0.6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(list(shrink))
    method.SetSmoothingSigmasPerLevel([factor / 2 * _WORKING_MM if factor > 1 else 0.0 for factor in shrink])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(sitk.Euler3DTransform(start), inPlace=False)
    try:
        transform = method.Execute(fixed, moving)
    except RuntimeError:  # the scans do not overlap from this start
        return sitk.Euler3DTransform(start), 0.0
    return sitk.Euler3DTransform(
        sitk.CompositeTransform(transform).GetNthTransform(0)
    ), -method.GetMetricValue()


def _matrix(transform: sitk.Euler3DTransform) -> Affine:
    rotation = np.array(transform.GetMatrix()).reshape(3, 3)
    center, shift = np.array(transform.GetCenter()), np.array(transform.GetTranslation())
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = center + shift - rotation @ center
    return matrix
