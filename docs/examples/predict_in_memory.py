"""A label map of images in memory, by a trained run or by the network that comes with the package.

python docs/examples/predict_in_memory.py RUN t1.nii.gz t1ce.nii.gz t2.nii.gz flair.nii.gz labels.nii.gz
"""

import sys

import nibabel

import brats_seg as bs


def main(run: str, t1n: str, t1c: str, t2w: str, t2f: str, out: str) -> None:
    """Segment one case and print the volumes of its tissues; RUN may be `starter`."""
    files = {"t1n": t1n, "t1c": t1c, "t2w": t2w, "t2f": t2f}
    found = bs.load_run(run).predict({name: nibabel.load(file) for name, file in files.items()})
    for tissue, ml in found.volumes_ml.items():
        print(f"{tissue}: {ml:.1f} ml")
    nibabel.save(found.image, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
