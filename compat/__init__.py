"""Losses with the names, arguments and defaults of other libraries, computed by `twinloss.fast`.

`twinloss.compat.monai` is a swap for `monai.losses`, and `twinloss.compat.nnunet` for the losses of nnU-Net.
"""

__all__: list[str] = []
