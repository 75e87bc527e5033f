#!/usr/bin/env bash
# The tables that need a GPU, in one call, those first that matter most:
#
#   bash tests/benchmarks/gpu.sh TORCH_ENV/bin/python FOLDER
#
# PYTHON (python) has cryjax, the python named first has PyTorch. Of each program FOLDER gets what it
# printed (NAME.txt) and measured (NAME.json), and what was compiled. One that fails, or takes longer
# than LIMIT (300 s), does not stop the rest; the exit status says whether there was one. PLATFORM=cpu
# WIDTH=0.0625 BATCH=4 BATCHES=4 STEPS=1 tries the call itself without a GPU.
set -uo pipefail
torch=${1:?give the python of an environment with PyTorch}
folder=${2:?give a folder for the tables}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$folder"
failed=0
# cuDNN's candidates for a convolution are tried once for all programs: that is most of a compilation.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$folder/compiled}

# run NAME PROGRAM OPTION...
run() {
  local name=$1 program=$2 begin=$SECONDS
  shift 2
  if timeout "${LIMIT:-300}" "${PYTHON:-python}" "$here/$program.py" "$@" \
    --out="$folder/$name.json" >"$folder/$name.txt" 2>"$folder/$name.log"; then
    echo "== $name, $((SECONDS - begin)) s"
  else
    echo "== $name ended with $? after $((SECONDS - begin)) s: $folder/$name.log"
    failed=1
  fi
  cat "$folder/$name.txt"
}

on=(--platform="${PLATFORM:-gpu}" --dtype=bfloat16)
of=("${on[@]}" --width="${WIDTH:-1}")
step=("${of[@]}" --torch_python="$torch" --peers=cryjax,torch --rounds=1 --repeats=5
  --steps="${STEPS:-30}")
batch=${BATCH:-256}

run step step "${step[@]}" --batches="$batch" --torch_modes=default
run step_larger step "${step[@]}" --batches="$((2 * batch))" --torch_modes=default
run step_autotuned step "${step[@]}" --peers=torch --batches="$batch" --torch_modes=max-autotune
run waiting inputs --files=1024 --batches=5 --repeats=1 --train_encoder=cnn14 --train_steps=60 \
  --train_width="${WIDTH:-1}" --train_batch="$batch" --train_dtype=bfloat16
run step_finetune step "${step[@]}" --task=finetune --batches="$batch" --torch_modes=default
run step_cnn10 step "${step[@]}" --encoder=cnn10 --batches="$batch" --torch_modes=default
run roofline roofline "${of[@]}" --batch="$batch"
run nt_xent nt_xent --platform="${PLATFORM:-gpu}" --torch_python="$torch" --most_gib=32
run log_mel log_mel --platform="${PLATFORM:-gpu}" --torch_python="$torch" --repeats=3
run growth growth "${of[@]}" --batch="$batch" --batches="${BATCHES:-64,128,256,512}" --devices=1
exit "$failed"
