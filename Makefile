# Every target does its own set-up: a venv in .venv, the exact versions of requirements.lock, the C++ extension.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
comma := ,
READY := $(VENV)/.ready

.PHONY: help demo test test-all test-oldest test-mergekit bench sanitize sanitize-thread gpu lint format lock setup clean

help:
	@echo "make setup     .venv with everything in it; what the other targets begin with"
	@echo "make demo      the whole study on the embedded base and corpus, and a report to look at (about 9 minutes on 2 cores); DATA=DIR: on rows of your own"
	@echo "make test      lint, types and every test that needs no GPU and is not slow (12 minutes, 2 cores)"
	@echo "make test-all  the same with the slow tests: every program of the corpus compiled and run"
	@echo "make test-oldest  the tests with the oldest versions that setup.py allows"
	@echo "make test-mergekit  the tests whose oracle is mergekit, which the others skip where it is missing; into build/, not .venv"
	@echo "make bench     pytest benchmarks/"
	@echo "make sanitize  the C++ extension under AddressSanitizer and UBSan; make sanitize-thread: under ThreadSanitizer"
	@echo "make gpu       the tests and benchmarks that need a CUDA card, in at most nine minutes"
	@echo "make lock      requirements.lock anew, from what is installed in .venv"
	@echo "make lint      ruff and mypy;  make format: ruff's formatter and fixes"

setup: $(READY)

$(READY): constraints.txt requirements.lock setup.py pyproject.toml $(wildcard csrc/*.* csrc/kernels/*)
	@bash scripts/setup.sh "$(PYTHON)" "$(VENV)"
	@touch $@

demo: $(READY)
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/demo.sh

# No new worker for one that died: it would begin with the test that the first one hung in.
test: lint
	@echo "== tests"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist loadfile --max-worker-restart 0

test-all: lint
	$(BIN)/python -m pytest -m "not gpu"

# In a copy of the package, with a venv and an extension of its own. UV_TORCH_BACKEND=cpu takes the build of torch that needs no CUDA libraries.
OLDEST := build/oldest
test-oldest: $(READY)
	$(BIN)/python -m pip install --quiet uv
	rm -rf $(OLDEST) && mkdir -p $(OLDEST) && git ls-files -z | xargs -0 cp --parents -t $(OLDEST)
	$(BIN)/uv venv --quiet --python $(BIN)/python $(OLDEST)/.venv
	cd $(OLDEST) && $(abspath $(BIN))/uv pip install --quiet --resolution lowest-direct --extra test --extra serve -r setup.py
	cd $(OLDEST) && .venv/bin/python setup.py --quiet build_ext --inplace
	cd $(OLDEST) && OMP_NUM_THREADS=1 .venv/bin/python -m pytest -m "not slow and not gpu" -n 2 --dist loadfile --max-worker-restart 0

# Beside .venv, whose newer versions of its dependencies it would otherwise replace.
MERGEKIT := build/mergekit
test-mergekit: $(READY)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(MERGEKIT) mergekit==0.1.5 immutables
	PYTHONPATH=$(MERGEKIT) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/model/merging tests/model/test_compose.py tests/model/test_compose_gates.py

bench: $(READY)
	$(BIN)/python -m pytest benchmarks/ --benchmark-columns=min,median,stddev,rounds

# Into copies of the package: the usual build stays. PyTorch keeps memory to its end, which is no leak of ours.
SANITIZED := build/sanitized
CPP_TESTS := -m pytest -q -p no:cacheprovider tests/moe_kernels/test_cpp_*.py
define build_sanitized
	rm -rf $(1) && mkdir -p $(1)
	cp -r moe_kernels tests csrc setup.py pyproject.toml $(1)/ && rm -f $(1)/moe_kernels/_C*.so
	cd $(1) && CFLAGS="-O1 -g1 -fno-omit-frame-pointer $(2)" PATH="$(CURDIR)/$(BIN):$$PATH" $(CURDIR)/$(BIN)/python setup.py build_ext --inplace
endef

sanitize: $(READY)
	$(call build_sanitized,$(SANITIZED),-fsanitize=address$(comma)undefined -fno-sanitize-recover=undefined)
	cd $(SANITIZED) && LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
		PYTHONPATH=. $(CURDIR)/$(BIN)/python $(CPP_TESTS) -k "not opcheck and not default_dtype"

# The tests that share work among threads. libgomp is not built with the sanitizer: scripts/tsan_openmp.cpp tells it of fork and join.
sanitize-thread: $(READY)
	$(call build_sanitized,$(SANITIZED)-thread,-fsanitize=thread)
	g++ -O1 -fPIC -shared -fsanitize=thread scripts/tsan_openmp.cpp -o $(SANITIZED)-thread/tsan_openmp.so
	cd $(SANITIZED)-thread && LD_PRELOAD="$$(g++ -print-file-name=libtsan.so) $$PWD/tsan_openmp.so" \
		TSAN_OPTIONS="ignore_noninstrumented_modules=1 exitcode=66" OMP_WAIT_POLICY=passive OMP_NUM_THREADS=2 \
		PYTHONPATH=. $(CURDIR)/$(BIN)/python $(CPP_TESTS) -k "(threads and not bfloat16) or zero_tokens or (nan_stays and 80) or anyhow"

gpu: $(READY)
	PYTHON=$(BIN)/python bash benchmarks/gpu_session.sh

lint: $(READY)
	@echo "== lint and types"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror csrc/*.cpp csrc/*.h csrc/kernels/*.h
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i csrc/*.cpp csrc/*.h csrc/kernels/*.h

# After an upgrade in .venv that passed `make test`, on a machine without a GPU (the CUDA build of torch would bring its libraries along).
lock: $(READY)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/python -m pip freeze --all --exclude-editable --exclude torch --exclude pip --exclude uv | $(BIN)/uv pip compile - --no-deps --generate-hashes \
		--no-annotate --custom-compile-command "make lock" --quiet --output-file requirements.lock > /dev/null

clean:
	rm -rf build *.egg-info runs .pytest_cache .mypy_cache .ruff_cache
