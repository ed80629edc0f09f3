#!/usr/bin/env bash
# Test, sanitise, bench and profile on a machine with a GPU; nothing is downloaded.
#
#   bench/gpu.sh OUT_DIR [tests | benches | both | profile]
#
# Phases, so that what the tests find can be mended before a second short lease measures: `tests`
# (GPU tests, scores of the neighbour search, every kernel under compute-sanitizer), at most 240 s,
# `benches`, at most 290 s, and `profile` (Nsight Compute on every kernel of a claim), at most 90 s.
# Where none is named, both of the first two. Each begins with at most 60 s of setting up, or 200 s
# where fastebm has to be built. Tests and benches fit in 600 s with a wheel.
#
# `make gpu-wheel` makes that wheel, dist/gpu. Git ignores dist/: name dist/gpu to whatever copies
# the tree to the GPU. It is installed where it is of this very tree and of this Python; else
# fastebm is built. Where .git does not travel, give the commit: FASTEBM_COMMIT=$(git describe
# --always --dirty --abbrev=12 --exclude '*'); else the wheel's is taken, where it is installed.
#
# Needs bash >= 5.1, python3 with torch >= 2.11 (CUDA), pytest, rich; to build nvcc,
# scikit-build-core, pybind11, ninja; tests go faster with pytest-xdist. OUT_DIR gets cuda.json, the
# results of all benches (empty where there are none), and cuda.log, everything that was printed
# with a summary at its end. To keep them, copy both to bench/results and run `make readme`. Of
# `profile` it gets ncu.txt, a line a kernel, and ncu.csv, all that was measured.
# A part that fails does not stop the next ones; the exit status is the number of failed parts.
# Results are saved after each case of a bench. Nothing begins, or goes on, after its phase's time:
# the last benches and the last cases of a bench are dropped first, and named at the end. A bench
# that fails before its first result is tried once more with --quick.
# PYTHON, CUDA_HOME, FASTEBM_CUDA_ARCHS (of a build; default: the GPU's own) and BENCH_SECONDS (of all
# benches; 290) are taken from the environment.
#
# Seconds on an H200 with 16 cores: tools 7, wheel 6; at once memcheck 15, initcheck 15, racecheck
# 26, scores 27 and, when there were two thirds of them, tests 112 on 4 workers of pytest; profile 45;
# alone, as they are timed, the benches: langevin 29, chain 51, neighbor 100, icd_step 76, gibbs 27,
# replay 33, what they compile taken from a cache of before; without one chain and neighbor 35 more
# for each compiled case.
set -uo pipefail

phases=${2:-both}
if [[ $# -lt 1 || $# -gt 2 || ! $phases =~ ^(tests|benches|both|profile)$ ]]; then
  echo "usage: $0 OUT_DIR [tests | benches | both | profile]" >&2
  exit 2
fi
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
python=${PYTHON:-python3}
benches=(langevin chain neighbor icd_step gibbs replay) # the first ones matter most
declare -A most_of=( # of 290 seconds
  [langevin]=40 [chain]=70 [neighbor]=70 [icd_step]=70 [gibbs]=30 [replay]=40)
failed=0
deadline=60 # of $SECONDS, for what runs now
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
  local name=$1 limit=$2 left=$((deadline - SECONDS))
  shift 2
  if [[ $left -lt 10 ]]; then
    note NO-TIME 0 "$name"
    failed=$((failed + 1))
    return 1
  fi
  limit=$((limit < left ? limit : left))
  # Interrupted first, so that pytest says what it has seen; bash ignores that in the background.
  # Not through a pipe, which a process left behind would hold open.
  timeout -s INT --kill-after=10 "$limit" env --default-signal=INT "$@" \
    >"$temporary/$name" 2>&1 </dev/null &
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

part() {
  start "$@" && collect
}

skip() {
  note skipped 0 "$1"
}

finish() {
  {
    printf '\n===== summary\n'
    cat "$temporary/summary"
    grep -h '^not run: ' "$temporary"/bench* 2>/dev/null
    echo "$failed part(s) failed, $SECONDS s in all"
  } | tee -a "$log"
  echo "results in $out"
  exit "$failed"
}

# The compiler, and what pip has put beside this Python, are not always on PATH.
scripts=$("$python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))')
export PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin:$scripts
# Python started in this folder would else find ./fastebm, which has no compiled module.
export PYTHONSAFEPATH=1
wheel=""
if [[ -e dist/gpu/sources && $(bench/sources.sh) == "$(<dist/gpu/sources)" ]]; then
  wheel=$(compgen -G 'dist/gpu/fastebm-*.whl')
  commit=$(<dist/gpu/commit)
fi
FASTEBM_COMMIT=$(git describe --always --dirty --abbrev=12 --exclude '*' 2>/dev/null ||
  echo "${FASTEBM_COMMIT:-${commit:-none}}")
export FASTEBM_COMMIT

{
  date -u +%FT%TZ
  echo "commit $FASTEBM_COMMIT"
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  nvcc --version | tail -n 2
  uptime
} 2>&1 | tee -a "$log"

# shellcheck disable=SC2016 # Python, not shell
check='
import importlib.util, shutil, sys
here = lambda m: importlib.util.find_spec(m) is not None
needed, tools = ("torch", "numpy", "pytest", "rich"), ()
if sys.argv[1:] == ["build"]:
    needed, tools = ("scikit_build_core", "pybind11"), ("nvcc", "ninja")
missing = [m for m in needed if not here(m)]
missing += [t for t in tools if shutil.which(t) is None and not here(t)]
if missing:
    sys.exit("missing on this machine, carry it there: " + ", ".join(missing))
import torch
if not torch.cuda.is_available():
    sys.exit("torch " + torch.__version__ + " sees no CUDA device")
print("torch", torch.__version__, torch.cuda.get_device_name())
'
# Else every GPU test would be skipped, and all be well.
usable='
from fastebm.info import gpu_status
print(gpu_status())
raise SystemExit(not gpu_status().startswith("usable"))
'
use_wheel() {
  [[ -n $wheel ]] || { skip "wheel: none in dist/gpu of this tree"; return 1; }
  # shellcheck disable=SC2016 # for the inner shell
  part wheel 40 bash -c '"$0" -m pip install -q --no-index --no-deps --target "$1" "$2" &&
    PYTHONPATH=$1 "$0" -c "$3"' "$python" "$temporary/site" "$wheel" "$usable" || return 1
  export PYTHONPATH=$temporary/site${PYTHONPATH:+:$PYTHONPATH}
}
# shellcheck disable=SC2016 # for the inner shell
build() {
  deadline=$((SECONDS + 150))
  if [[ -z ${FASTEBM_CUDA_ARCHS:-} ]]; then
    FASTEBM_CUDA_ARCHS=$("$python" -c \
      'import torch; print("{}{}".format(*torch.cuda.get_device_capability()))')
  fi
  export FASTEBM_CUDA_ARCHS FASTEBM_CUDA=ON
  part "tools to build" 60 "$python" -c "$check" build &&
    part build 140 bash -c '"$0" -m pip install --no-build-isolation --no-deps --no-index -e . &&
      "$0" -c "$1"' "$python" "$usable"
}
part tools 60 "$python" -c "$check" || finish
use_wheel || build || finish

# What is not timed, all at once.
run_tests() {
  deadline=$((SECONDS + 240))
  local workers tool
  workers=$("$python" -c 'import xdist; print(8)' 2>/dev/null)
  # Few compilers in each worker: beside them are nvcc and the sanitisers.
  start tests 230 env TORCHINDUCTOR_COMPILE_THREADS=2 "$python" -m pytest -v -m gpu \
    -p no:cacheprovider --continue-on-collection-errors --durations=15 \
    ${workers:+-n "$workers"} tests
  # The bounds on scores are proven for a model of the tensor cores: here they meet the real ones.
  if command -v nvcc >/dev/null; then
    # shellcheck disable=SC2016 # for the inner shell
    start scores 150 bash -c 'nvcc -std=c++17 -O3 --fmad=false --expt-relaxed-constexpr \
      -arch=native -Icsrc -x cu tests/simt/neighbor_scores.cpp -o "$0/neighbor_scores" &&
      "$0/neighbor_scores"' "$temporary"
  else
    skip "scores: no nvcc on PATH"
  fi
  # Without torch's cache every tensor has an allocation of its own, whose ends are seen. What
  # torch asks the driver for in vain is no error.
  for tool in memcheck racecheck initcheck; do
    if command -v compute-sanitizer >/dev/null; then
      start "$tool" 230 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" \
        --report-api-errors no --error-exitcode 1 "$python" bench/every_kernel.py
    else
      skip "$tool: no compute-sanitizer on PATH"
    fi
  done
  while [[ ${#name_of[@]} -gt 0 ]]; do
    collect
  done
}

# bench NAME SECONDS [--quick]: no case begins in its last quarter.
bench() {
  part "bench $1${3:+, quick}" "$2" "$python" bench --only "$1" --device cuda \
    --seconds $(($2 * 3 / 4)) --out "$temporary/cuda.json" ${3:+"$3"}
  local status=$?
  cp "$temporary/cuda.json" "$out" 2>/dev/null # also if the next one takes the machine down
  return "$status"
}

run_benches() {
  local name all=${BENCH_SECONDS:-290}
  deadline=$((SECONDS + all))
  for name in "${benches[@]}"; do
    bench "$name" $((most_of[$name] * all / 290)) || grep -q "^ \"$name\":" "$out/cuda.json" ||
      [[ $((deadline - SECONDS)) -lt 30 ]] || bench "$name" 60 --quick
  done
}

run_profile() {
  deadline=$((SECONDS + 90))
  if ! command -v ncu >/dev/null; then
    skip "profile: no ncu on PATH"
    return
  fi
  local sections=(SpeedOfLight SchedulerStats WarpStateStats LaunchStats Occupancy)
  sections+=(MemoryWorkloadAnalysis ComputeWorkloadAnalysis)
  local report=$temporary/kernels.ncu-rep
  # With its own folder to import from, as a script has that Python starts by itself.
  part profile 70 env -u PYTHONSAFEPATH ncu --profile-from-start off --clock-control none \
    --kernel-name-base demangled --kernel-name regex:fastebm "${sections[@]/#/--section=}" \
    -o "${report%.ncu-rep}" "$python" bench/profile_kernels.py --seconds 50
  # Where it failed late, of what there is.
  # shellcheck disable=SC2016,SC2181 # for the inner shell; a command of five lines
  [[ $? -ne 0 && ! -e $report ]] || part table 20 env -u PYTHONSAFEPATH bash -o pipefail -c '
    ncu --import "$1" --page raw --csv >"$2/ncu.csv" &&
      cat "$3" "$2/ncu.csv" | "$0" bench/profile_kernels.py --table | tee "$2/ncu.txt"' \
    "$python" "$report" "$out" "$temporary/profile"
}

asked() {
  [[ $phases == "$1" || $phases == both ]]
}
if asked tests; then run_tests; else skip "tests, scores, sanitisers: not asked for"; fi
if asked benches; then run_benches; else skip "benches: not asked for"; fi
if [[ $phases == profile ]]; then run_profile; fi
finish
