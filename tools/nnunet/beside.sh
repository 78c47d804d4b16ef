#!/usr/bin/env bash
# nnU-Net's 2d configuration beside ours: the same training cases, the same seconds of one core, the same scores.
# In a virtual environment of its own: pip install -c constraints.txt . nnunetv2, with torch and torchvision of one build
# [LEFT_OUT="CASE CASE"] tools/nnunet/beside.sh SCANS OUT CORE_MINUTES CASE [CASE ...]
# CASE: a held-out case; LEFT_OUT: cases that ours does not train on either (its inner cases)
set -euo pipefail
scans=$1 out=$2; export CORE_MINUTES=$3; shift 3
here=$(cd "$(dirname "$0")" && pwd)
export nnUNet_raw=$out/raw nnUNet_preprocessed=$out/preprocessed nnUNet_results=$out/results
export nnUNet_extTrainer=$here/trainer nnUNet_n_proc_DA=1 nnUNet_compile=f OMP_NUM_THREADS=1
raw=$nnUNet_raw/Dataset001_Beside
results=$nnUNet_results/Dataset001_Beside/OneCoreTrainer__nnUNetPlans__2d

if [ ! -e "$nnUNet_preprocessed/Dataset001_Beside/nnUNetPlans_2d" ]; then
  # shellcheck disable=SC2086
  python "$here/convert.py" to "$scans" "$raw" "${@/#/--held-out=}" ${LEFT_OUT:+$(printf -- '--left-out=%s ' $LEFT_OUT)}
  nnUNetv2_plan_and_preprocess -d 1 -c 2d -np 1 -npfp 1
fi
nnUNet_n_proc_DA=0 nnUNetv2_train 1 2d all -tr OneCoreTrainer -device cpu
nnUNetv2_predict -d 1 -c 2d -f all -tr OneCoreTrainer -device cpu --disable_tta -npp 1 -nps 1 \
  -i "$raw/imagesTs" -o "$out/predicted"
nnUNetv2_evaluate_folder "$raw/labelsTs" "$out/predicted" -np 1 \
  -djfile "$results/dataset.json" -pfile "$results/plans.json"
python "$here/convert.py" back "$scans" "$out/predicted" "$out/labels"
brats-seg evaluate "$out/labels" "$scans" --convention brats2020 --convention nnunet
