"""Eq. 3 of the paper, measured in the network that it is stated for."""
