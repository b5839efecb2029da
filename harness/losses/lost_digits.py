"""Reasons why cases of a loss may be degraded: the digits that the formula itself loses in the dtype under test."""

OVERLAP = (
    "The gradient of an overlap loss is the difference of two terms, one for the hits and one for the errors. In a few "
    "voxels, they may cancel: where a soft target g is far below the prediction p, the terms are up to p/g times as "
    "large as the gradient, and a smoothing term may put the minimum of the loss near p. With soft_label, the loss has "
    "a kink at p = g. If p differs from g by less than a roundoff, rounding decides on which side of the kink it lies. "
    "Both twins compute these terms, and lose the same digits."
)
WINDOWS = (
    "Where two images match in a window, or all but one of its voxels are equal, the derivatives of the correlation "
    "and of the variances cancel, and so do the contributions of overlapping windows. The plain formula loses as many "
    "digits."
)
HISTOGRAM = (
    "Two independent images have a mutual information of 0, up to the smoothing terms. The computed value is the "
    "rounding error of the joint histogram, which no perturbation of the images explains."
)
