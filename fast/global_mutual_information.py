"""Global mutual information of two images; the twin of `reference/global_mutual_information.py`.

(A helper session is writing this file and kernels/mutual_information.py, 05:41 on.)
"""
