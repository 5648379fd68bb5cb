"""Inlier priority, recorded during trainings."""
