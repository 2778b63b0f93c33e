"""Builds the kernels with the package; everything else is in pyproject.toml.

Where there is no C compiler the install goes on without them: numpy and torch do their work.
"""

import os

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # an old setuptools, which can still build in place
    bdist_wheel = None

# Set by `make wheels`: the wheel must hold the kernels, which need nothing newer than glibc 2.17.
FOR_OTHERS = bool(os.environ.get("OMNISPARSE_MANYLINUX"))

FLAGS = ["-O3", "-std=gnu11", "-fno-math-errno", "-ffp-contract=fast", "-Wno-psabi"]


class BuildKernels(build_ext):
    """Names the library without the Python version: it is loaded by ctypes."""

    def get_ext_filename(self, fullname):
        """Path of the compiled file."""
        return fullname.replace(".", "/") + ".so"


commands = {"build_ext": BuildKernels}

if bdist_wheel is not None:

    class Wheel(bdist_wheel):
        """A wheel for every Python 3 of one platform."""

        def get_tag(self):
            """Tags of the wheel: the kernels know nothing of Python."""
            platform = super().get_tag()[2]
            if FOR_OTHERS:
                platform = platform.replace("linux_", "manylinux_2_17_", 1)
            return ("py3", "none", platform)

    commands["bdist_wheel"] = Wheel

setup(
    cmdclass=commands,
    ext_modules=[
        Extension(
            f"omnisparse.{room}._{kernels}",
            sources=[f"omnisparse/{room}/{kernels}.c"],
            depends=headers,
            extra_compile_args=FLAGS,
            optional=not FOR_OTHERS,
        )
        for room, kernels, headers in (
            ("deploy", "sparse_kernels", ["omnisparse/deploy/sparse_vectors.h"]),
            ("models", "bf16_kernels", ["omnisparse/models/lstm_bf16.h"]),
        )
    ],
)
