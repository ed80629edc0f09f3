#!/usr/bin/env bash
# Build, test, sanitise and bench on a machine with a GPU; nothing is downloaded.
#
#   bench/gpu.sh OUT_DIR
#
# Needs bash >= 5.1, python3 with torch >= 2.11 (CUDA), nvcc, scikit-build-core, pybind11, ninja,
# pytest, rich; tests go faster with pytest-xdist. OUT_DIR gets cuda.json, the results of all benches
# (empty where there are none), and cuda.log, everything that was printed with a summary at its end.
# To keep them, copy both to bench/results and run `make readme`.
# A part that fails does not stop the next ones; the exit status is the number of failed parts. A
# bench that fails is tried once more with --quick.
# PYTHON and FASTEBM_CUDA_ARCHS (default: the GPU's own) are taken from the environment.
#
# Nothing starts, or goes on, after `budget` seconds, and every part has a limit of its own. Expected
# seconds on 16 cores, 380 in all: tools 10, build 75 (nvcc takes 46 for the largest file, measured),
# then together tests, sanitisers and scores 75, then alone, as they are timed, the benches: langevin
# 45, chain 60, neighbor 50, icd_step 30, gibbs 15, replay 20. All but nvcc's are estimates: this has
# not run on a GPU yet.
set -uo pipefail

if [[ $# -ne 1 ]]; then
  echo "usage: $0 OUT_DIR" >&2
  exit 2
fi
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
python=${PYTHON:-python3}
budget=465
benches=(langevin chain neighbor icd_step gibbs replay) # the first ones matter most
failed=0
log=$out/cuda.log
temporary=$(mktemp -d)
trap 'kill "${!name_of[@]}" 2>/dev/null; rm -rf "$temporary"' EXIT
: >"$log"
echo '{}' >"$out/cuda.json"

note() {
  printf '%-9s %4ss  %s\n' "$1" "$2" "$3" | tee -a "$temporary/summary"
}

declare -A name_of limit_of began # of what is running, by process

# start NAME SECONDS COMMAND...: runs it in the background, with a limit.
start() {
  local name=$1 limit=$2 left=$((budget - SECONDS))
  shift 2
  if [[ $left -lt 10 ]]; then
    note NO-TIME 0 "$name"
    failed=$((failed + 1))
    return 1
  fi
  limit=$((limit < left ? limit : left))
  # Not through a pipe, which a process left behind would hold open.
  timeout --kill-after=5 "$limit" "$@" >"$temporary/$name" 2>&1 </dev/null &
  name_of[$!]=$name limit_of[$!]=$limit began[$!]=$SECONDS
}

# Waits for one of those; its output to the log, the end of it to the terminal.
collect() {
  local pid status name seconds
  wait -n -p pid "${!name_of[@]}"
  status=$? name=${name_of[$pid]} seconds=$((SECONDS - began[$pid]))
  printf '\n===== %s\n' "$name" | cat - "$temporary/$name" >>"$log"
  tail -n 25 "$temporary/$name"
  case $status in
    0) note ok "$seconds" "$name" ;;
    124 | 137) note TIMED-OUT "$seconds" "$name (limit ${limit_of[$pid]} s)" ;;
    *) note FAILED "$seconds" "$name (exit $status)" ;;
  esac
  unset "name_of[$pid]"
  [[ $status -eq 0 ]] || failed=$((failed + 1))
  return "$status"
}

phase() {
  start "$@" && collect
}

finish() {
  {
    printf '\n===== summary\n'
    cat "$temporary/summary"
    echo "$failed part(s) failed, $SECONDS s in all"
  } | tee -a "$log"
  echo "results in $out"
  exit "$failed"
}

{
  date -u +%FT%TZ
  git rev-parse HEAD 2>/dev/null
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  nvcc --version | tail -n 2
  uptime
} 2>&1 | tee -a "$log"

# shellcheck disable=SC2016 # Python, not shell
check='
import importlib.util, shutil, sys
missing = [m for m in ("torch", "numpy", "scikit_build_core", "pybind11", "pytest", "rich")
           if importlib.util.find_spec(m) is None]
missing += [t for t in ("ninja", "nvcc") if shutil.which(t) is None]
if missing:
    sys.exit("missing on this machine, carry it there: " + ", ".join(missing))
import torch
if not torch.cuda.is_available():
    sys.exit("torch " + torch.__version__ + " sees no CUDA device")
print("torch", torch.__version__, torch.cuda.get_device_name())
'
phase tools 60 "$python" -c "$check" || finish
if [[ -z ${FASTEBM_CUDA_ARCHS:-} ]]; then
  FASTEBM_CUDA_ARCHS=$("$python" -c \
    'import torch; print("{}{}".format(*torch.cuda.get_device_capability()))')
fi
export FASTEBM_CUDA_ARCHS FASTEBM_CUDA=ON

# Editable: python started in this folder would else find ./fastebm, which has no compiled module.
phase build 140 "$python" -m pip install --no-build-isolation --no-deps --no-index -e . || finish

# Every kernel once on small inputs, for compute-sanitizer; torch itself only copies.
small_case='
import torch
from fastebm import Augmentation, nearest_neighbor, ops
from fastebm.bernoulli import bernoulli_sigmoid, bernoulli_sigmoid_
from fastebm.mlp_chain import mlp_chain_
from fastebm.plain_mlp import Network
from fastebm.rng import ChainRNG
rng = ChainRNG(1).state("cuda")
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    for dim in (3, 64, 1030):
        x, grad = (torch.randn(5, dim).to("cuda", dtype) for _ in range(2))
        steps = torch.full((5,), 0.01, dtype=torch.promote_types(dtype, torch.float32)).cuda()
        ops.langevin_step_(x, grad, 0.01, 0.1, rng, grad_clip=1.0, clamp=(-1.0, 1.0))
        ops.langevin_step_(x, grad, steps, 0.1, rng, grad_norm_clip=0.5)
        ops.langevin_step_(x, None, 0.0, 1.0, rng)
        x.requires_grad_()
        ops.langevin_step(x, grad, 0.01, 0.1, rng, clamp=(-1.0, 1.0)).backward(grad)
for dtype in (torch.float32, torch.float64, torch.uint8):
    wide = torch.promote_types(dtype, torch.float32)
    for n, m, dim in ((5, 300, 3), (5, 300, 16), (5, 150, 33), (70, 150, 64), (70, 150, 1032)):
        x = torch.rand(n, dim).to("cuda", wide).requires_grad_()
        y = (torch.rand(m, dim) * 200).to("cuda", dtype)
        nearest_neighbor(x, y, skip=torch.arange(n).cuda(), k=3)[0].backward(
            torch.ones(n, 3).to("cuda", wide))
everything = dict(scale=(0.1, 1.0), hflip_p=0.5, contrast=0.5, kernel_size=5, blur_p=0.5)
color = dict(brightness=0.5, saturation=0.5, hue=0.2, grayscale_p=0.3)
index = torch.tensor([0, 3, -1, 2, 5, 1]).cuda()
for dtype in (torch.uint8, torch.float32, torch.bfloat16):
    for shape in ((3, 16, 17), (1, 9, 11), (3, 65, 66)):
        images = torch.randint(0, 256, (6, *shape)).to("cuda", dtype)
        moves = Augmentation(**everything, **(color if shape[0] == 3 else {}))
        for parameters in ((), moves.parameters):
            for init in ("uniform", "normal"):
                ops.replay_gather(
                    images, index, rng, reinit_prob=0.2, init=init, augmentation=parameters
                )
for n, dim, widths in ((20, 3, (40, 9)), (5, 70, (256, 256, 200)), (4200, 2, (8,))):
    sizes = (dim, *widths, 1)
    weights = [torch.randn(b, a).cuda() / a**0.5 for a, b in zip(sizes, sizes[1:])]
    net = Network(weights, [None] * len(weights), "silu")
    for precision in ("fp32", "bf16"):
        x = torch.randn(n, dim).cuda()
        mlp_chain_(x, net, 2, 0.01, 0.1, rng, grad_norm_clip=1.0, precision=precision)
for n, dim in ((5, 3), (70, 130)):
    logits = torch.randn(n, dim).cuda()
    bernoulli_sigmoid_(bernoulli_sigmoid(logits, rng), rng)
torch.cuda.synchronize()
print("done")
'
# What is not timed, all at once.
workers=$("$python" -c 'import xdist' 2>/dev/null && echo 4)
start tests 110 "$python" -m pytest -q -m gpu -p no:cacheprovider ${workers:+-n "$workers"} tests
# The bounds on scores are proven for a model of the tensor cores: here they meet the real ones.
# shellcheck disable=SC2016 # for the inner shell
start scores 110 bash -c 'nvcc -std=c++17 -O3 --fmad=false --expt-relaxed-constexpr -arch=native \
  -Icsrc -x cu tests/neighbor_scores.cpp -o "$0/neighbor_scores" && "$0/neighbor_scores"' "$temporary"
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    start "$tool" 110 compute-sanitizer --tool "$tool" --error-exitcode 1 "$python" -c "$small_case"
  done
else
  note skipped 0 "memcheck, racecheck: no compute-sanitizer on PATH"
fi
while [[ ${#name_of[@]} -gt 0 ]]; do
  collect
done

# bench NAME SECONDS [--quick]
bench() {
  phase "bench $1${3:+, quick}" "$2" \
    "$python" -m bench --only "$1" --device cuda --out "$temporary/cuda.json" ${3:+"$3"}
  local status=$?
  cp "$temporary/cuda.json" "$out" 2>/dev/null # also if the next one takes the machine down
  return "$status"
}

for name in "${benches[@]}"; do
  bench "$name" 100 || bench "$name" 60 --quick
done
finish
