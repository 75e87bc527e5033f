#!/usr/bin/env bash
# The whole pipeline on synthetic audio, from nothing, within 5 minutes on two cores:
#   bash launch/quickstart.sh [FOLDER]
# Prepares general sounds and unlabelled cries, pre-trains an encoder on them with SimCLR, and
# probes it on labelled cries of other infants, beside the same encoder untrained. Rerun, it
# resumes.
out=${1:+$(realpath -m -- "$1")}
source "$(dirname "$0")/setup.sh"
out=${out:-runs/quickstart}
cores=$(python -c 'import os; print(os.cpu_count())')
echo "quickstart: synthetic audio, $cores cores; everything goes into $out"

prepare() { python -m cryjax.prepare --sample_rate=8000 "$@"; }
prepare --synthetic=sounds --examples=600 --out="$out/sounds"
prepare --synthetic=cries --examples=1200 --synthetic_seed=1 --out="$out/unlabelled-cries"
prepare --synthetic=cries --examples=600 --synthetic_seed=2 --out="$out/labelled-cries"

python -m cryjax.pretrain --config=configs/pretrain_small.py --workdir="$out/pretrained" \
  --config.data="$out/sounds,$out/unlabelled-cries" --config.total="120 steps" \
  --config.optimizer.warmup="10 steps" --config.checkpoint_every="40 steps"
python -m cryjax.linear_probe --config=configs/linear_probe.py --workdir="$out/probe" \
  --config.init="$out/pretrained" --config.data="$out/labelled-cries" | tee "$out/table.txt"

cat <<END

quickstart: done. All of it is synthetic: it shows that the programs work, nothing about infants.
  $out/pretrained/figures/views.png     pairs of views, as the encoder sees them
  $out/pretrained/figures/training.png  the course of the training
  $out/probe/figures/confusion.png      which cries are taken for which
  $out/probe/result.json                the numbers, with their intervals
END
