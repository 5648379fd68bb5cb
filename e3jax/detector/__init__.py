"""The detectors: E3Outlier, PyOD's contract, scikit-learn's adapter, files of them."""
