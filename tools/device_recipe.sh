#!/usr/bin/env bash
# The 3-D recipe on one GPU that is lent for minutes and takes files in small parcels: five folds and the network of all cases.
#
#   here   tools/device_recipe.sh pack SCANS PARCELS [MIB]   scans -> PARCELS/part1.tar, part2.tar, ... each below MIB (default 52)
#   there  tools/device_recipe.sh unpack PARCELS SCANS       every parcel that has arrived -> scan folders; run once a parcel
#   there  tools/device_recipe.sh bank SCANS BANK            the bank, with five folds
#   there  tools/device_recipe.sh train BANK RUNS            RUNS/fold0 ... RUNS/fold4 and RUNS/all
#   there  tools/device_recipe.sh score BANK RUNS SCANS OUT  held-out cases of each fold: label maps, scores.csv, summary.json;
#                                                            ends with 1 where a case has no label map or no score
#   there  tools/device_recipe.sh collect RUNS OUT           what is brought back: weights to predict with, tables, pictures
#
# Each step has a time limit of its own, in seconds: LIMIT_BANK, LIMIT_RUN (one training), LIMIT_SCORE.
# EPOCHS and STEPS set the budget of a training; AT_ONCE is how many trainings share the card; EXTRA holds further --set options.
# A hundredth on a CPU: EPOCHS=1 STEPS=4 EXTRA='--set patch.size=[32,32,32] --set training.batch_size=2' (about ten minutes).
set -euo pipefail

BRATS_SEG=${BRATS_SEG:-brats-seg}
CONFIG=${CONFIG:-recipe3d}
FOLDS=${FOLDS:-0 1 2 3 4 all}

pack() { # SCANS PARCELS MIB
    mkdir -p "$2"
    python3 - "$1" "$2" "${3:-52}" <<'PY'
"""bzip2 packs a scan to three quarters of its .nii.gz."""
import bz2, gzip, io, sys, tarfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

def squeeze(path):
    return bz2.compress(gzip.decompress(path.read_bytes()))

if __name__ == "__main__":
    scans, parcels, limit = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]) * 2**20
    number, size, tar = 0, limit, None
    with ProcessPoolExecutor() as pool:
        files = sorted(scans.rglob("*.nii.gz"))
        for path, data in zip(files, pool.map(squeeze, files)):
            if size + len(data) > limit:
                if tar:
                    tar.close()
                number, size = number + 1, 0
                tar = tarfile.open(parcels / f"part{number}.tar", "w")
            entry = tarfile.TarInfo(str(path.relative_to(scans))[: -len(".gz")] + ".bz2")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
            size += len(data)
    tar.close()
PY
    ls -l "$2"
}

unpack() { # PARCELS SCANS
    mkdir -p "$2"
    for parcel in "$1"/part*.tar; do tar -xf "$parcel" -C "$2"; done
    # The scans get their first names back: a case is known by them.
    find "$2" -name '*.bz2' -print0 | xargs -0 -P "$(nproc)" -n 4 sh -c \
        'for f; do bunzip2 -c "$f" | gzip -1 > "${f%.bz2}.gz" && rm "$f"; done' sh
}

bank() { # SCANS BANK
    timeout "${LIMIT_BANK:-120}" $BRATS_SEG preprocess "$1" "$2" --folds 5
}

train() { # BANK RUNS
    mkdir -p "$2"
    local budget="--set training.epochs=${EPOCHS:-20} --set training.steps=${STEPS:-75}"
    # A second call with the same folders goes on with what is not finished.
    printf '%s\n' $FOLDS | xargs -P "${AT_ONCE:-2}" -I{} sh -c \
        "run=fold{}; [ {} = all ] && run=all; \
        timeout ${LIMIT_RUN:-180} $BRATS_SEG train '$1' \"$2/\$run\" --config $CONFIG --fold {} $budget ${EXTRA:-} \
            --resume > \"$2/\$run.log\" 2>&1 || echo \"fold {}: not finished, see $2/\$run.log\""
}

score() { # BANK RUNS SCANS OUT
    mkdir -p "$4"
    for run in "$2"/fold[0-9]; do
        timeout "${LIMIT_SCORE:-60}" $BRATS_SEG predict "$run" "$3" "$4/$(basename "$run")" --held-out
    done
    mkdir -p "$4/all_folds"
    cp "$4"/fold[0-9]/*.nii.gz "$4/all_folds/"
    timeout "${LIMIT_SCORE:-60}" $BRATS_SEG evaluate "$4/all_folds" "$3" --convention brats2020 --convention brats2023
}

collect() { # RUNS OUT
    mkdir -p "$2"
    local run name
    for run in "$1"/fold[0-9] "$1"/all; do
        if [ -f "$run/checkpoint_best.pt" ]; then
            name=$(basename "$run")
            cp "$run/checkpoint_best.pt" "$2/$name.pt"
            tar -cf - -C "$run" --exclude='*.pt' . | gzip > "$2/$name.tables.tar.gz"
        fi
    done
}

step=${1:?a step: pack, unpack, bank, train, score or collect}
shift
"$step" "$@"
