"""Packages, dependencies, and the optional C++ operators of `csrc/`."""

import os
import sys
import sysconfig
from pathlib import Path

from setuptools import find_packages, setup

ROOMS = ("moe_kernels", "model", "train", "eval", "benchmarks")

INSTALL_REQUIRES = [
    "torch>=2.11",
    "triton>=3.6; platform_system == 'Linux'",  # CUDA builds of torch bring it, CPU builds do not; tests interpret and compile with it
    "transformers>=5.17",
    "bitsandbytes>=0.50",
    "peft>=0.21",
    "accelerate>=1.14",  # before, FSDP2 would shard NF4's bytes, which can require no gradient
    "numpy>=2.0",
    "safetensors>=0.8",
    "filelock>=3.10",
    "datasets>=4.0",
    "codebleu==0.7.0",
    # The grammars that codebleu 0.7.0 can load; others install and then fail when they are used.
    "tree-sitter==0.22.3",
    "tree-sitter-python==0.21.0",
    "tree-sitter-java==0.21.0",
    "tree-sitter-javascript==0.21.4",
    "tree-sitter-cpp==0.22.3",
    "rapidfuzz>=3.9",
    "sacrebleu>=2.5",
    "pyyaml>=6.0.2",
    "tqdm>=4.66.3",
    "matplotlib>=3.10",
    "tensorboard>=2.19",
]
TEST_REQUIRES = ["pytest>=9", "pytest-xdist>=3.6", "pytest-benchmark>=5"]
SERVE_REQUIRES = ["transformers[serving]"]  # for model.serve alone
DEV_REQUIRES = ["ruff>=0.12", "mypy>=1.15", "clang-format>=18"]


def skip_extension(reason: object) -> None:
    print(f"moe-kernels: the C++ operators are not built ({reason}); their torch references will run.", file=sys.stderr)


def optional_extension() -> dict[str, object]:
    """The arguments of `setup` that build `moe_kernels._C`; none if torch is out of the build's sight."""
    # pip builds in an environment that hides what is installed, and a torch that it fetched for the build alone would be another than
    # the one that the extension is loaded into (and several GB). So: the installed one, found where packages are installed.
    sys.path.append(sysconfig.get_path("purelib"))
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        skip_extension("torch is not installed, or hidden from the build: install it first, then use pip's --no-build-isolation")
        return {}

    class OptionalBuild(BuildExtension):
        """A compiler that is absent or fails costs the extension, not the installation."""

        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except Exception as error:
                skip_extension(str(error).partition("\n")[0])
                for extension in self.extensions:
                    extension.optional = True  # or the missing file is an error when it is copied into place

    # OpenMP is compiled in but not linked: its symbols are then those of the runtime in libtorch, and the threads are PyTorch's.
    # A fused multiply-add would round the absmax once instead of twice, and no longer equal bitsandbytes.
    # No flag names an instruction set: the sources that are for one say so themselves, and csrc/cpu.cpp chooses among them at run time.
    optimisation = [] if "-O" in os.environ.get("CFLAGS", "") else ["-O3", "-g0"]  # these come last, and would win
    flags = [*optimisation, "-ffp-contract=off", *(["-fopenmp"] if sys.platform == "linux" else [])]
    root = Path(__file__).parent
    sources = sorted(str(path.relative_to(root)) for path in root.glob("csrc/*.cpp"))
    headers = sorted(str(path.relative_to(root)) for path in root.glob("csrc/**/*.h"))
    extension = CppExtension("moe_kernels._C", sources, depends=headers, extra_compile_args=[] if sys.platform == "win32" else flags)
    return {"ext_modules": [extension], "cmdclass": {"build_ext": OptionalBuild}}


setup(
    name="moe-kernels",
    version="0.1.0",
    description="Four code experts in one 4-bit mixture: train, compose, run and measure it on one card",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=[pattern for room in ROOMS for pattern in (room, f"{room}.*")]),
    package_data={"eval": ["*.css", "*.js", "judge/harness/*"], "moe_kernels": ["tables/*.json"], "benchmarks": ["cpu/probe.cpp"]},
    install_requires=INSTALL_REQUIRES,
    extras_require={"test": TEST_REQUIRES, "dev": TEST_REQUIRES + SERVE_REQUIRES + DEV_REQUIRES, "serve": SERVE_REQUIRES},
    **optional_extension(),
)
