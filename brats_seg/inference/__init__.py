"""Case + network -> label map on the native grid."""
