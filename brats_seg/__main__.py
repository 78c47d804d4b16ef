"""The same entry point as the console script (`python -m brats_seg`, `torchrun -m brats_seg`)."""

from brats_seg.cli import main

if __name__ == "__main__":
    main()
