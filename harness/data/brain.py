"""Real data: the MNI152 brain, as labels, tissue probabilities and logits.

The T1 template and its grey and white matter maps (1 mm, 197 x 233 x 189 voxels) are part of the nilearn package, so
nothing is downloaded. Classes: 0 background, 1 cerebrospinal fluid (CSF), 2 grey matter, 3 white matter.
"""

import functools
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]

CLASSES = ("background", "CSF", "grey matter", "white matter")
FIT_VOXELS = 50_000
# The minimum variance of a mixture component, with T1 scaled to [0, 1]. The background is exactly 0: without this floor
# its component would be a point mass, with infinite logits.
VARIANCE_FLOOR = 1e-3


@dataclass(frozen=True, eq=False)
class Brain:
    """The brain at full size, S = (197, 233, 189). The arrays are shared: do not write to them."""

    t1: Map  # S, in [0, 1]
    labels: NDArray[np.uint8]  # (1, 1, *S), the most probable class
    soft_labels: Map  # (1, 4, *S), sums to 1 over the classes
    mask: NDArray[np.bool_]  # (1, 1, *S), True inside the brain

    @functools.cached_property
    def logits(self) -> Map:
        """Logits of the four classes, (1, 4, *S); computed at first use, because registration losses need none."""
        # Warnings of the imaging packages must not stop a run in which warnings are errors.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _mixture_logits(self.t1)[None]


@functools.cache
def load_brain() -> Brain:
    """Load the MNI152 brain, once per process and without a network.

    Raises:
        ImportError: if nilearn, which contains the data, is not installed.
    """
    # Warnings of the imaging packages must not stop a run in which warnings are errors.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        t1, grey, white, mask = _read_maps()
    soft_labels = _soft_labels(grey, white, mask)
    return Brain(
        t1=t1,
        labels=soft_labels.argmax(axis=0).astype(np.uint8)[None, None],
        soft_labels=soft_labels[None],
        mask=mask[None, None],
    )


def _read_maps() -> tuple[Map, Map, Map, NDArray[np.bool_]]:
    """Return T1, grey matter and white matter in [0, 1] and the brain mask, each of shape S."""
    try:
        from nilearn import datasets
        from nilearn.image import get_data
    except ImportError as error:
        raise ImportError(
            'the MNI152 brain is part of nilearn, which is missing: pip install "twinloss[real]"'
        ) from error
    loaders = (datasets.load_mni152_template, datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    # Copy to C order, as nilearn's images are in Fortran order.
    t1, grey, white = (np.array(get_data(load(resolution=1)), dtype=np.float32, order="C") for load in loaders)
    mask = np.array(get_data(datasets.load_mni152_brain_mask(resolution=1)), bool, order="C")
    for load in (*loaders, datasets.load_mni152_brain_mask):
        getattr(load, "cache_clear", lambda: None)()  # otherwise nilearn would keep a second copy of its images
    return t1, grey, white, mask


def _soft_labels(grey: Map, white: Map, mask: NDArray[np.bool_]) -> Map:
    """Return the probability of each class, (4, *S); CSF is the rest of the brain after both tissues."""
    soft = np.empty((len(CLASSES), *mask.shape), np.float32)
    soft[0] = ~mask
    soft[2] = np.where(mask, grey.clip(0, 1), 0)
    soft[3] = np.where(mask, white.clip(0, 1), 0)
    soft[2:] /= np.maximum(soft[2] + soft[3], 1)
    soft[1] = np.where(mask, (1 - soft[2] - soft[3]).clip(0), 0)
    return soft


def _mixture_logits(t1: Map) -> Map:
    """Return the logits log(weight_k) + log N(t1 | mean_k, variance_k) of a Gaussian mixture, (4, *S).

    The mixture sees only T1, so it errs where a segmentation network errs: at the borders of tissues. Components are
    ordered by mean, from dark background to bright white matter.
    """
    from sklearn.mixture import GaussianMixture

    sample = np.random.default_rng(0).choice(t1.ravel(), FIT_VOXELS)
    mixture = GaussianMixture(len(CLASSES), reg_covar=VARIANCE_FLOOR, random_state=0)
    mixture.fit(sample[:, None].astype(np.float64))
    order = mixture.means_.ravel().argsort()
    logits = np.empty((len(CLASSES), *t1.shape), np.float32)
    for logit, k in zip(logits, order, strict=True):
        mean, variance = float(mixture.means_[k, 0]), float(mixture.covariances_[k, 0, 0])
        constant = float(np.log(mixture.weights_[k]) - 0.5 * np.log(2 * np.pi * variance))
        logit[...] = constant - (t1 - mean) ** 2 / (2 * variance)
    return logits
