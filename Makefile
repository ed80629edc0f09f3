# make demo and make test are the two commands of the README; the rest is for developers. ARGS of
# make test, make oldest and make wheel-test go to pytest, which WORKERS processes run.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN = $(VENV)/bin
ARCHS = 80 90 100
WORKERS ?= 2
ON_WORKERS = -n $(WORKERS) --dist worksteal
CXX_FILES = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu')

.PHONY: demo test dev check fmt kernels asan fake-cuda bench readme docs gpu wheel wheel-test gpu-wheel oldest clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch comes first and by itself, so that nothing else can choose one.
torch: $(BIN)/python
	@$(BIN)/pip install -q --disable-pip-version-check "$(TORCH)" numpy
.PHONY: torch

demo: torch
	$(BIN)/pip install -q --disable-pip-version-check ".[app]"
	$(BIN)/fastebm demo --out runs/demo

test: torch
	FASTEBM_SIMT=ON $(BIN)/pip install -q --disable-pip-version-check ".[test]"
	FASTEBM_REQUIRE_SIMT=any $(BIN)/pytest -q $(ON_WORKERS) $(ARGS)

# What a build without isolation needs.
tools: torch
	$(BIN)/pip install -q --disable-pip-version-check \
	  "scikit-build-core>=0.11" "pybind11>=2.13" "cmake>=3.24" ninja
.PHONY: tools

# Editable, rebuilt when imported, with the emulated kernels. CUDA's, which nvcc takes minutes for
# and make kernels compiles too, only where they can run: make dev FASTEBM_CUDA=ON.
dev: export FASTEBM_CUDA ?= OFF
dev: tools
	FASTEBM_SIMT=ON $(BIN)/pip install --disable-pip-version-check --no-build-isolation -e ".[dev]" \
	  -Ceditable.rebuild=true -Cbuild-dir=build/dev

check:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

fmt:
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	@$(BIN)/clang-format -i $(CXX_FILES)

# Every CUDA source that has changed, for every architecture; prints registers and spills, warnings
# are errors.
OBJECTS = $(patsubst %.cu,build/kernels/%.o,$(sort $(shell find csrc -name '*cuda.cu')))
kernels:
	@$(MAKE) --no-print-directory -j "$$(nproc)" $(OBJECTS)

build/kernels/%.o: %.cu Makefile
	@mkdir -p $(@D)
	@nvcc -std=c++17 -O3 --fmad=false --expt-relaxed-constexpr -Werror all-warnings \
	  $(foreach arch,$(ARCHS),-gencode=arch=compute_$(arch),code=sm_$(arch)) -Xptxas=-v -Icsrc \
	  -MMD -MP -c $< -o $@ 2> $(@:.o=.log) || { cat $(@:.o=.log); exit 1; }
	@awk 'BEGIN { print "$<" } \
	  /Compiling entry function/ { arch = substr($$NF, 2, length($$NF) - 2); n[arch]++ } \
	  /spill stores/ && $$5 > 0 { spill[arch]++ } \
	  /Used [0-9]+ registers/ && $$5 > most[arch] { most[arch] = $$5 } \
	  END { for (a in n) print "  " a ": " n[a] " kernels, at most " most[a] " registers, " \
	    spill[a] + 0 " of them spill" }' $(@:.o=.log)
-include $(OBJECTS:.o=.d)

# The emulated kernels under the address and undefined-behaviour sanitisers, in a venv of make test
# or make dev; then, for FUZZ seconds, all operators with arguments that fit and that do not. Every size and type that reaches memory in a way of its own; left out is what differs
# by values or by the order of threads alone, and of the searches against all references those of one
# neighbour.
VALUES = opcheck or compile or gradcheck or law or rounding or bounds or scales or duplicates \
  or activations or schedule or order_of_threads or (exhaustive and -1-)
SANITIZED = LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
  ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0:allocator_may_return_null=1 \
  UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
FUZZ ?= 60
asan: tools
	$(BIN)/cmake -S . -B build/asan -G Ninja -DCMAKE_BUILD_TYPE=Release -DFASTEBM_CUDA=OFF \
	  -DFASTEBM_SIMT=ON -DFASTEBM_SANITIZE=ON -DPython_EXECUTABLE=$(abspath $(BIN)/python) \
	  -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
	  -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)
	$(BIN)/cmake --build build/asan --target _simt _C
	$(SANITIZED) FASTEBM_REQUIRE_SIMT=$(CURDIR)/build/asan \
	  $(BIN)/pytest -q $(ON_WORKERS) -p no:cacheprovider \
	  -k "(simt or cuda_kernel) and not ($(VALUES))" tests/ops tests/replay/test_augmentation.py
	$(SANITIZED) FASTEBM_FUZZ_BUILD=build/asan $(BIN)/python tests/ops/fuzz.py $(FUZZ) 0

# The tests of a GPU on the emulated device, which minds where a tensor is. In a venv of `make dev`;
# two minutes. What needs more of torch's CUDA than tensors is left out: graphs, and an index that is
# checked on a CPU before a kernel could see it.
fake-cuda:
	FASTEBM_FAKE_CUDA=1 FASTEBM_REQUIRE_SIMT=any $(BIN)/pytest -q $(ON_WORKERS) -m gpu -p no:cacheprovider \
	  --ignore tests/chains/test_capture.py \
	  --deselect tests/losses/test_train_step.py::test_replays_are_eager_steps \
	  --deselect tests/ops/test_replay.py::test_index_out_of_range_on_a_device_is_seen tests

# The rivals depend on torch as well: naming it once more keeps the one that is there.
bench: torch
	$(BIN)/pip install -q --disable-pip-version-check "$(TORCH)" ".[bench]"
	$(BIN)/python -m bench

# docs/speed.md, its charts and the README's headlines from bench/results, nothing measured.
readme:
	$(BIN)/python -m bench readme

# The site, into site/. Links and references that lead nowhere are errors. fastebm is read, not
# imported, so it need not be built.
docs: $(BIN)/python
	$(BIN)/pip install -q --disable-pip-version-check "mkdocs-material>=9.5,<10" "mkdocstrings[python]>=1,<2"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# PHASE=tests, benches or profile for one alone.
gpu:
	bench/gpu.sh runs/gpu $(PHASE)

# A wheel, and the proof that it uses no C++ symbol of torch but the stable ones.
wheel: tools
	rm -rf build/wheel && mkdir -p build/wheel dist
	FASTEBM_SIMT=OFF $(BIN)/pip wheel -q --disable-pip-version-check --no-deps \
	  --no-build-isolation -w build/wheel .
	cd build/wheel && unzip -q fastebm-*.whl
	! nm -D --undefined-only -C build/wheel/fastebm/_C*.so | grep -E "at::|c10::"
	cp build/wheel/fastebm-*.whl dist

# That wheel in a new venv with torch and nothing else: the README's example, away from the source
# tree, and the quick tests of operators and samplers. For another Python:
# make wheel-test PYTHON=python3.12 VENV=build/venv-3.12 TORCH=torch==2.11.0
WHEEL_BIN = build/wheel-venv/bin
wheel-test: wheel
	rm -rf build/wheel-venv && $(PYTHON) -m venv build/wheel-venv
	$(WHEEL_BIN)/pip install -q --disable-pip-version-check "$(TORCH)"
	$(WHEEL_BIN)/pip install -q --disable-pip-version-check build/wheel/fastebm-*.whl pytest
	cd build/wheel-venv && bin/python -c "import re; text = open('../../README.md').read(); \
	  exec(re.search(r'\`\`\`python\n(.*?)\`\`\`', text, re.S)[1])"
	$(WHEEL_BIN)/pytest -q -p no:cacheprovider -k "not (opcheck or compile or law)" $(ARGS) \
	  tests/test_build.py tests/test_rng.py tests/ops tests/samplers

# The wheel that bench/gpu.sh installs where it fits, so that a rented GPU need not wait for nvcc:
# kernels for sm_90, Python and torch of GPU_VENV (5 GB with CUDA's libraries, the oldest torch that
# is promised, made where it is not there). git ignores dist/: whoever copies a tree to a GPU must
# name dist/gpu. What it was made of stands beside it.
GPU_PYTHON ?= python3.12
GPU_VENV ?= build/gpu-venv
ON_OLDEST = PYTHON=$(GPU_PYTHON) VENV=$(GPU_VENV) TORCH=torch==2.11.0
gpu-wheel:
	$(MAKE) tools $(ON_OLDEST)
	rm -rf dist/gpu build/gpu-wheel && mkdir -p dist/gpu build/gpu-wheel
	bench/sources.sh > dist/gpu/sources
	git describe --always --dirty --abbrev=12 --exclude '*' > dist/gpu/commit
	FASTEBM_SIMT=OFF FASTEBM_CUDA=ON FASTEBM_CUDA_ARCHS=90 $(GPU_VENV)/bin/pip wheel -q \
	  --disable-pip-version-check --no-deps --no-build-isolation -w dist/gpu .
	cd build/gpu-wheel && unzip -q ../../dist/gpu/fastebm-*.whl
	! nm -D --undefined-only -C build/gpu-wheel/fastebm/_C*.so | grep -E "at::|c10::"
	ls -l dist/gpu

# The README's test command on the oldest torch that is promised; in the venv of gpu-wheel.
oldest:
	FASTEBM_CUDA=OFF $(MAKE) test $(ON_OLDEST)

clean:
	rm -rf build dist runs
