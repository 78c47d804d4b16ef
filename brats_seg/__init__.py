"""Segmentation of brain tumors in multimodal MRI that takes class imbalance seriously."""
